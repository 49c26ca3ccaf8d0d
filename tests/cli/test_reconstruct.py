import errno
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stepladder.images import load_image, save_png


def pixels(path):
    return np.asarray(load_image(path)).tolist()


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def test_images_and_folders_become_pngs_of_the_same_size(run, model, photos, tmp_path):
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.gif")
    Image.new("RGB", (37, 401)).save(tmp_path / "tall.png")
    result = run("reconstruct", photos, "dot.gif", "tall.png", "--out", "out", "--model", model)
    assert result.exit_code == 0
    assert result.stderr == ""
    sizes = {name: load_image(Path("out") / name).size for name in names("out")}
    assert sizes == {"a.png": (17, 9), "b.png": (8, 8), "dot.png": (1, 1), "tall.png": (37, 401)}


def test_the_table_reports_each_image(run, model, photos):
    result = run("reconstruct", photos, "--out", "out", "--model", f"{model}@1")
    assert f"{model}, 1 step in each of 3 stages, in out" in result.stdout
    (row,) = [line for line in result.stdout.splitlines() if "a.png" in line]
    assert "17 x 9" in row
    assert "16 x 2 x 3" in row
    assert f"{16 * 2 * 3 * 32 / (17 * 9):.2f}" in row


def test_json_is_one_object_with_what_was_done(run, model, photos):
    result = run("reconstruct", photos / "a.png", "--out", "out", "--model", f"{model}@1", "--seed", 3, "--json")
    report = json.loads(result.stdout)
    (done,) = report.pop("done")
    assert report.pop("mean") == {key: done[key] for key in ("bits_per_pixel", "psnr_db", "seconds")}
    assert report == {
        "model": model,
        "steps_per_stage": 1,
        "stages": 3,
        "network_evaluations": 3,
        "guidance": 1.0,
        "sampler": "euler",
        "texture": 1.0,
        "shift": None,
        "noise": "drawn",
        "seed": 3,
        "device": "cpu",
        "dtype": "float32",
        "compiled": False,
        "failed": [],
    }
    assert done.pop("psnr_db") > 0
    assert done.pop("seconds") > 0
    assert done.pop("bits_per_pixel") == pytest.approx(16 * 2 * 3 * 32 / (17 * 9))
    assert done == {
        "input": str(photos / "a.png"),
        "output": os.path.join("out", "a.png"),  # noqa: PTH118
        "seed": 3,
        "comparison": None,
        "stages": None,
        "width": 17,
        "height": 9,
        "latent_shape": [16, 2, 3],
        "latent_bits": 16 * 2 * 3 * 32,
    }


def test_compare_puts_the_original_left_and_the_reconstruction_right(run, model, photos):
    run("reconstruct", photos / "a.png", "--out", "out", "--model", model, "--compare")
    assert names("out") == ["a-compare.png", "a.png"]
    sheet = load_image("out/a-compare.png")
    assert np.array_equal(sheet.crop((0, 0, 17, 9)), load_image(photos / "a.png"))
    assert np.array_equal(sheet.crop((sheet.width - 17, 0, sheet.width, 9)), load_image("out/a.png"))


def test_an_image_does_not_depend_on_the_others_but_on_the_seed(run, model, photos):
    run("reconstruct", photos, "--out", "all", "--model", model, "--seed", 1)
    run("reconstruct", photos / "b.jpg", "--out", "alone", "--model", model, "--seed", 1)
    run("reconstruct", photos / "b.jpg", "--out", "other", "--model", model, "--seed", 2)
    assert pixels("all/b.png") == pixels("alone/b.png")
    assert pixels("all/b.png") != pixels("other/b.png")


def test_an_image_named_twice_is_done_once(run, model, photos):
    result = run("reconstruct", photos, photos / "a.png", "--out", "out", "--model", model, "--json")
    assert len(json.loads(result.stdout)["done"]) == 2


# ----------------------------------------------------------------------------------------------------------- bad input


def test_one_bad_image_does_not_stop_the_others(run, model, photos):
    (photos / "aa.png").write_text("no image")
    (photos / "ab.png").touch()
    result = run("reconstruct", photos, "missing.png", "--out", "out", "--model", model, "--json")
    assert result.exit_code == 1
    assert names("out") == ["a.png", "b.png"]
    report = json.loads(result.stdout)
    assert [Path(done["input"]).name for done in report["done"]] == ["a.png", "b.jpg"]
    assert [Path(failed["input"]).name for failed in report["failed"]] == ["aa.png", "ab.png", "missing.png"]
    lines = result.stderr.splitlines()
    assert [line.startswith("error: Cannot read image ") for line in lines] == [True] * 3 + [False]
    assert lines[3] == "2 of 5 done, 3 failed."
    assert "Traceback" not in result.stderr
    for line, failed in zip(lines, report["failed"], strict=False):
        assert line == f"error: {failed['error']}"


def test_debug_shows_the_traceback_of_a_bad_image_and_goes_on(run, model, photos):
    (photos / "aa.png").touch()
    result = run("reconstruct", photos, "--out", "out", "--model", model, "--debug")
    assert result.stderr.startswith("Traceback")
    assert names("out") == ["a.png", "b.png"]


def test_if_all_images_are_bad_the_table_is_left_out(run, model):
    result = run("reconstruct", "missing.png", "--out", "out", "--model", model)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "0 of 1 done, 1 failed." in result.stderr


def test_a_folder_without_images_is_refused(refused, model, tmp_path):
    (tmp_path / "empty").mkdir()
    assert refused("reconstruct", "empty", "--out", "out", "--model", model).startswith("Folder empty holds no images")


def test_an_image_too_large_for_the_memory_does_not_stop_the_others(run, model, photos, monkeypatch):
    from stepladder.measure import reconstruction

    genuine = reconstruction.reconstruct_together

    def tight(tokenizer, images, **options):
        if images[0].width == 17:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate ...")
        return genuine(tokenizer, images, **options)

    monkeypatch.setattr("stepladder.measure.reconstruction.reconstruct_together", tight)
    result = run("reconstruct", photos, "--out", "out", "--model", model)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: Not enough memory for {photos / 'a.png'}. Use smaller images")
    assert names("out") == ["b.png"]


def test_a_bug_is_not_taken_for_a_bad_image(run, model, photos, monkeypatch):
    def bug(*args, **options):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr("stepladder.measure.reconstruction.reconstruct_together", bug)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        run("reconstruct", photos, "--out", "out", "--model", model)


@pytest.mark.parametrize(
    ("option", "value", "code", "text"),
    [
        ("--model", "nope", 1, "Unknown model 'nope'. Accepted: an embedded name"),
        ("--model", "nope@0", 2, "Steps per stage '0' of model 'nope' is not a whole number of 1 to 10,000."),
        ("--model", "nope@-1", 2, "Steps per stage '-1'"),
        ("--model", "nope@x", 2, "Steps per stage 'x'"),
        ("--model", "@3", 2, "has no name"),
        ("--device", "quantum", 2, "Device 'quantum' cannot be used here. Accepted: cpu, or an accelerator"),
        ("--dtype", "float8", 2, "Invalid value for '--dtype'"),
        ("--batch", "0", 2, "Batch '0' is not a number of 1 to 65,536 or auto. Pass --batch 8."),
        ("--batch", "many", 2, "Batch 'many' is not a number of 1 to 65,536 or auto."),
        ("--device", "meta", 2, "Device 'meta' cannot be used here."),
        ("--device", "cuda:99", 2, "Device 'cuda:99' cannot be used here."),
    ],
)
def test_a_bad_model_and_a_bad_device_are_refused(refused, model, photos, option, value, code, text):
    options = {"--model": model} | {option: value}
    words = [word for pair in options.items() for word in pair]
    assert text in refused("reconstruct", photos, "--out", "out", *words, code=code)
    assert not Path("out").exists()


def damage_version(folder):
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"format_version": 1', '"format_version": 9'))


def damage_weights(folder):
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-9] ^= 1
    (folder / "model.safetensors").write_bytes(data)


def damage_key(folder):
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"latent_channels"', '"latent_chanels"'))


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (damage_version, "has format version 9. Accepted: 1."),
        (damage_weights, "is damaged"),
        (damage_key, "Did you mean 'latent_channels'?"),
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
    ],
)
def test_a_damaged_model_is_refused(refused, model, photos, tmp_path, damage, text):
    folder = tmp_path / "model"
    folder.mkdir()
    for file in Path(model).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    damage(folder)
    assert text in refused("reconstruct", photos, "--out", "out", "--model", folder)


# -------------------------------------------------------------------------------------------------------------- output


def test_existing_output_stays_unless_forced_and_no_work_is_done(run, refused, model, photos):
    Path("out").mkdir()
    Path("out/b.png").write_text("precious")
    line = refused("reconstruct", photos, "--out", "out", "--model", model)
    assert line == f"{Path('out/b.png')} exists already. Pass --force to replace, or name another --out."
    assert names("out") == ["b.png"]
    assert Path("out/b.png").read_text() == "precious"
    assert run("reconstruct", photos, "--out", "out", "--model", model, "--force").exit_code == 0
    assert load_image("out/b.png").size == (8, 8)


def test_existing_output_is_found_before_the_model_is_looked_for(refused, photos):
    for name in ("a", "a-compare", "b"):
        save_png(Image.new("RGB", (2, 2)), f"out/{name}.png")
    line = refused("reconstruct", photos, "--out", "out", "--model", "nope", "--compare")
    assert "exists already (and 2 more)." in line


def test_two_images_of_one_name_are_refused_before_work_starts(refused, photos, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    Image.new("RGB", (2, 2)).save(other / "a.jpg")
    line = refused("reconstruct", photos, other / "a.jpg", "--out", "out", "--model", "nope", code=2)
    assert line == (
        f"{photos / 'a.png'} and {other / 'a.jpg'} would both become {Path('out/a.png')}. "
        "Rename one, or run them apart with another --out."
    )


def test_a_comparison_that_meets_another_reconstruction_is_refused(refused, photos):
    Image.new("RGB", (2, 2)).save(photos / "a-compare.png")
    assert "would both become" in refused("reconstruct", photos, "--out", "out", "--compare", code=2)


def test_an_input_is_never_overwritten(refused, photos):
    before = pixels(photos / "a.png")
    line = refused("reconstruct", photos, "--out", photos, "--force")
    assert line == f"{photos / 'a.png'} is an input and is not overwritten. Name another --out."
    assert pixels(photos / "a.png") == before


def test_a_file_as_output_folder_is_refused(refused, model, photos, tmp_path):
    (tmp_path / "out").touch()
    line = refused("reconstruct", photos, "--out", "out", "--model", model)
    assert line == "Cannot write to folder out: it is a file. Name another --out."
    assert "Not a directory" in refused("reconstruct", photos, "--out", "out/deeper", "--model", model)


def test_a_full_disk_leaves_nothing_half_written(run, model, photos, monkeypatch):
    def full(self, path, **options):
        path.write_bytes(b"half a")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    result = run("reconstruct", photos, "--out", "out", "--model", model)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.count("No space left on device. Free some space; nothing was left half written.") == 2
    assert names("out") == []


@pytest.mark.skipif(sys.platform == "win32", reason="needs the file size limit of POSIX")
def test_a_disk_that_really_refuses_leaves_nothing_half_written(python, model, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    code = (
        "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))\n"
        "from stepladder.cli import main\nmain()"
    )
    words = ["reconstruct", "noise.png", "--out", "out", "--model", model]
    done = python(code, *words, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.splitlines()[0].startswith(f"error: Cannot write {Path('out/noise.png')}: ")
    assert done.stderr.splitlines()[1:] == ["0 of 1 done, 1 failed."]
    assert names(tmp_path / "out") == []


@pytest.mark.skipif(sys.platform != "linux", reason="needs a file system of bytes")
def test_names_that_are_no_text_and_names_like_markup_are_done(run, model, tmp_path):
    odd = os.fsdecode(b"odd-\xff.png")
    for name in (odd, "[red]x.png"):
        save_png(Image.new("RGB", (8, 8)), tmp_path / name)
    result = run("reconstruct", tmp_path, "--out", "out", "--model", model)
    assert result.exit_code == 0
    assert "[red]x.png" in result.stdout
    assert "odd-\N{REPLACEMENT CHARACTER}.png" in result.stdout
    assert sorted(os.listdir(b"out")) == [b"[red]x.png", b"odd-\xff.png"]  # noqa: PTH208
