#!/bin/sh
# The comparison of ladders: a teacher and a student for each number of scales K, at two rates of the latent. All of one
# rate share encoder and initial estimate, and see the same crops: 8,000 for a teacher, 3,600 for a student. Of each K > 1
# there are two students: the last stage alone is judged beside the real image, or every stage (`every_scale`).
#
#   sh recipes/ladders/run.sh f16 1 2 3 4       on the encoder of models/photo-f16-teacher
#   sh recipes/ladders/run.sh f16 2-light ...   stages with networks of their own, the last one lighter: see below
#   sh recipes/ladders/run.sh f32 1 3           on latents of TAESana; first, to be done once:
#
#   stepladder cache recipes/ladders/f32-cache.toml --out cache/f32
#   stepladder train recipes/ladders/f32-initial.toml --out runs/ladders/f32-initial
#
# A teacher and its student take about 17 minutes of one core. Models that are there already are left alone. Where stages
# end, and what the latent leaves open at each scale, is from `stepladder schedule`. The students are runs/ladders/RATE-kK.
set -eu

rate=$1
shift
case $rate in
    f16) initial=models/photo-f16-teacher ends="0.18 0.13 0.088 0" residuals="0.0214 0.05 0.097 0.129" ;;
    f32) initial=runs/ladders/f32-initial/model ends="0.292 0.269 0.179 0" residuals="0.105 0.148 0.183 0.208" ;;
    *) echo "error: unknown rate '$rate'. Accepted: f16, f32." >&2 && exit 2 ;;
esac

last() { # last N WORD...: the last N words
    n=$1
    shift
    shift $(($# - n))
    echo "$@"
}

light='{"depth": 1, "coarse_depth": 1}' wide='{"coarse_width": 256, "coarse_depth": 4}'
for k in "$@"; do
    case $k in # networks of the stages, coarse first
        2-light) networks='[{}, {"depth": 1, "coarse_depth": 2}]' ;;
        2-wide) networks="[$wide, $light]" ;;
        3-light) networks="[{}, {}, $light]" ;;
        3-wide) networks="[$wide, $wide, $light]" ;;
        *-*) echo "error: unknown ladder '$k'. Accepted: 1 to 4, 2-light, 2-wide, 3-light, 3-wide." >&2 && exit 2 ;;
        *) networks="" ;;
    esac
    start=runs/ladders/$rate-start-$k teacher=runs/ladders/$rate-teacher-$k student=runs/ladders/$rate-student-$k
    count=${k%-*}
    e=$(last "$count" $ends) r=$(last "$count" $residuals)
    [ -d "$start" ] ||
        python recipes/ladders/start.py "$initial" "$count" "$start" --ends $e --residuals $r ${networks:+--networks "$networks"}
    [ -d "$teacher/model" ] || stepladder train "recipes/ladders/$rate-teacher.toml" --out "$teacher" \
        --set "start.encoder_from=\"$start\"" --set "start.decoder_from=\"$start\"" \
        --set "tokenizer.ladder.num_stages=$count" --set "tokenizer.ladder.ends=[$(echo $e | tr ' ' ,)]" \
        --set "tokenizer.ladder.residuals=[$(echo $r | tr ' ' ,)]" ${networks:+--set "tokenizer.decoder.networks=$networks"}
    [ -d "$student/model" ] || stepladder distill "recipes/ladders/$rate-student.toml" --out "$student" \
        --set "teacher=\"$teacher/model\""
    ln -sfn "$rate-student-$k/model" "runs/ladders/$rate-k$k"
    [ "$count" -gt 1 ] && [ -z "$networks" ] || continue
    [ -d "$student-every/model" ] || stepladder distill "recipes/ladders/$rate-student.toml" --out "$student-every" \
        --set "teacher=\"$teacher/model\"" --set recipe.every_scale=true
    ln -sfn "$rate-student-$k-every/model" "runs/ladders/$rate-k$k-every"
done
