"""A bulk encode by a frozen encoder, for a model that holds a decoder alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

pytest.importorskip("onnxruntime")

import stepladder
from image_fakes import encoded
from stepladder.bulk.jobs import decode, encode
from stepladder.bulk.options import DecodeOptions, EncodeOptions
from stepladder.bulk.run import Engine
from stepladder.errors import CheckpointError
from stepladder.images import centre_crop_resize, load_image, to_tensor
from stepladder.tokenizer import Tokenizer

OPTIONS = EncodeOptions(size=16, batch=2, shard=4)
PROGRAM = "from stepladder.cli import main\nif __name__ == '__main__': main()"


def latents(folder: Path) -> dict[str, np.ndarray]:
    rows = [row for path in sorted(folder.glob("latents-*.parquet")) for row in pq.read_table(path).to_pylist()]
    return {
        row["id"]: np.frombuffer(row["latent"], row["dtype"]).reshape(row["shape"]) for row in rows if not row["error"]
    }


@pytest.mark.parametrize("workers", [0, 1])
def test_workers_encode_by_the_encoder_that_is_named(rows, decoder, encoder, tmp_path, workers):
    summary = encode(
        str(rows),
        str(tmp_path / "out"),
        model=str(decoder),
        encoder=str(encoder),
        options=OPTIONS,
        engine=Engine(workers=workers),
    )
    assert (summary.images, summary.failed, summary.shards_failed) == (11, 1, [])
    tokenizer = Tokenizer.from_pretrained(decoder)
    tokenizer.encoder.open(str(encoder))
    pictures = [to_tensor(centre_crop_resize(load_image(encoded(n)), 16)) for n in (2, 3)]
    expected = tokenizer.encode(torch.stack(pictures)).latent.numpy()
    found = latents(tmp_path / "out")
    assert np.array_equal(np.stack([found["rows.parquet:2"], found["rows.parquet:3"]]), expected)
    assert summary.fingerprint == tokenizer.fingerprint()


def test_decoding_them_needs_no_encoder(rows, decoder, encoder, tmp_path):
    places = {name: str(tmp_path / name) for name in ("latents", "images")}
    here = Engine(workers=0)
    encode(str(rows), places["latents"], model=str(decoder), encoder=str(encoder), options=OPTIONS, engine=here)
    encoder.unlink()
    summary = decode(
        places["latents"], places["images"], model=str(decoder), options=DecodeOptions(steps=1), engine=here
    )
    assert summary.images == 11 and not summary.shards_failed


def test_an_encoder_that_is_not_there_stops_the_job_before_anything_is_written(rows, decoder, tmp_path):
    with pytest.raises(CheckpointError, match=r"'the-encoder\.onnx' is not here"):
        encode(str(rows), str(tmp_path / "out"), model=str(decoder), options=OPTIONS, engine=Engine(workers=0))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_actors_of_ray_make_the_same_bits(rows, decoder, encoder, tmp_path):
    pytest.importorskip("ray")
    encode(
        str(rows),
        str(tmp_path / "out"),
        model=str(decoder),
        encoder=str(encoder),
        options=OPTIONS,
        engine=Engine(workers=0),
    )
    words = f"bulk encode {rows} ray --model {decoder} --encoder {encoder} --size 16 --batch 2 --shard 4 --workers 2"
    environment = {**os.environ, "PYTHONPATH": str(Path(stepladder.__file__).parents[1])}
    command = [sys.executable, "-c", PROGRAM, *words.split(), "--engine", "ray", "--json"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr  # one image is damaged
    assert json.loads(done.stdout)["engine"] == "ray"
    found, expected = latents(tmp_path / "ray"), latents(tmp_path / "out")
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[key], expected[key]) for key in expected)
