"""A bulk encode: what is in the output, whoever made it and however often it was stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import stepladder
from bulk_fakes import make_rows
from image_fakes import encoded
from stepladder.images import centre_crop_resize, load_image, to_tensor
from stepladder.tokenizer import Tokenizer

PROGRAM = "from stepladder.cli import main\nif __name__ == '__main__': main()"


def table(folder: Path) -> list[dict]:
    return [row for path in sorted(folder.glob("latents-*.parquet")) for row in pq.read_table(path).to_pylist()]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("latents-*")}


def prepared(n: int) -> torch.Tensor:
    return to_tensor(centre_crop_resize(load_image(encoded(n)), 16))


def test_every_image_is_one_row_with_its_latent_size_and_columns(coded, rows, models, tmp_path):
    summary = coded(rows)
    found = table(tmp_path / "out")
    assert [row["id"] for row in found] == [f"rows.parquet:{n}" for n in range(12)]
    assert [row["label"] for row in found] == list(range(12))
    assert found[3]["caption"] == "red 3"
    tokenizer = Tokenizer.from_pretrained(models["plain"])
    latent = np.frombuffer(found[2]["latent"], found[2]["dtype"]).reshape(found[2]["shape"])
    expected = tokenizer.encode(torch.stack([prepared(2), prepared(3)])).latent[0]
    assert np.array_equal(latent, expected.numpy())
    assert (found[2]["height"], found[2]["width"], found[2]["model"]) == (16, 16, tokenizer.fingerprint())
    assert (summary.images, summary.failed, summary.shards, summary.shards_failed) == (11, 1, 3, [])


def test_a_damaged_image_is_a_row_with_its_error_and_a_line_of_the_errors_table(coded, rows, tmp_path):
    coded(rows)
    bad = table(tmp_path / "out")[5]
    assert (bad["latent"], bad["shape"], bad["label"]) == (None, None, 5)
    assert bad["error"].startswith("Cannot read image rows.parquet:5: it is no image of a format that is read")
    (line,) = (tmp_path / "out" / "errors.jsonl").read_text("utf-8").splitlines()
    assert json.loads(line) == {"shard": "00000-001", "id": "rows.parquet:5", "error": bad["error"]}


def test_statistics_are_those_of_all_latents(coded, rows, tmp_path):
    summary = coded(rows)
    found = [row for row in table(tmp_path / "out") if row["latent"]]
    latents = np.stack([np.frombuffer(row["latent"], row["dtype"]).reshape(row["shape"]) for row in found])
    assert summary.mean == pytest.approx(latents.astype(np.float64).mean((0, 2, 3)))
    assert summary.std == pytest.approx(latents.astype(np.float64).std((0, 2, 3), ddof=1))
    assert json.loads((tmp_path / "out" / "statistics.json").read_text("utf-8"))["std"] == summary.std


def test_images_keep_their_sizes_and_share_batches_with_those_of_their_size(coded, tmp_path, models):
    folder = tmp_path / "photos"
    folder.mkdir()
    for n in range(6):
        (folder / f"{n}.png").write_bytes(encoded(n, width=24 if n % 2 else 16))
    coded(folder, size=None)
    found = table(tmp_path / "out")
    assert [(row["height"], row["width"], row["shape"]) for row in found] == [
        (20, 24, [16, 3, 3]) if n % 2 else (20, 16, [16, 3, 2]) for n in range(6)
    ]
    tokenizer = Tokenizer.from_pretrained(models["plain"])
    pair = torch.stack([to_tensor(load_image(encoded(n, width=24))) for n in (1, 3)])
    assert found[3]["latent"] == tokenizer.encode(pair).latent[1].numpy().tobytes()


def test_quantised_models_store_indices_and_variational_ones_moments(coded, rows, tmp_path, models):
    coded(rows, "fsq", kind="fsq")
    row = table(tmp_path / "fsq")[0]
    indices = torch.frombuffer(bytearray(row["latent"]), dtype=getattr(torch, row["dtype"])).view(*row["shape"])
    code = Tokenizer.from_pretrained(models["fsq"]).encode(torch.stack([prepared(0), prepared(1)]))
    assert torch.equal(indices.long(), code.indices[0])
    coded(rows, "kl", kind="kl", moments=True)
    row = table(tmp_path / "kl")[0]
    tokenizer = Tokenizer.from_pretrained(models["kl"])
    code = tokenizer.encode(torch.stack([prepared(0), prepared(1)]))
    moments = torch.frombuffer(bytearray(row["latent"]), dtype=torch.float32).view(*row["shape"])
    assert torch.equal(moments[:16], code.latent[0])
    scale = (tokenizer.bottleneck.scale.variance + 1e-6).rsqrt()[:, None, None]
    assert torch.allclose(moments[16:], (0.5 * code.posterior.log_variance[0]).exp() * scale)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_latents_are_stored_in_the_type_that_is_asked_for(coded, rows, tmp_path, dtype):
    coded(rows)
    coded(rows, "narrow", dtype=dtype, flip=True)
    wide, narrow = table(tmp_path / "out")[0], table(tmp_path / "narrow")[0]
    kind = getattr(torch, dtype)
    expected = torch.frombuffer(bytearray(wide["latent"]), dtype=torch.float32).to(kind)
    assert narrow["dtype"] == dtype
    assert torch.equal(torch.frombuffer(bytearray(narrow["latent"]), dtype=kind), expected)
    assert len(narrow["latent_flip"]) == len(narrow["latent"])


def test_a_run_that_is_done_does_nothing_more(coded, rows):
    coded(rows)
    again = coded(rows)
    assert (again.shards, again.shards_before, again.images_now, again.images) == (3, 3, 0, 11)


def test_a_shard_whose_file_was_lost_or_cut_is_made_again(coded, rows, tmp_path):
    coded(rows)
    before = contents(tmp_path / "out")
    (tmp_path / "out" / "latents-00000-000.parquet").unlink()
    os.truncate(tmp_path / "out" / "latents-00000-001.parquet", 100)
    assert coded(rows).shards_before == 1
    assert contents(tmp_path / "out") == before


def test_a_driver_that_is_killed_loses_nothing_and_repeats_nothing(coded, tmp_path, models):
    """The same bits as an undisturbed run, with another number of workers after the kill."""
    data = make_rows(tmp_path / "rows.parquet", count=200)
    coded(data, "whole", shard=5)
    output = tmp_path / "killed"
    words = f"bulk encode {data} {output} --model {models['plain']} --size 16 --batch 2 --shard 5 --workers 1".split()
    environment = {**os.environ, "PYTHONPATH": str(Path(stepladder.__file__).parents[1])}
    driver = subprocess.Popen([sys.executable, "-c", PROGRAM, *words], env=environment, stderr=subprocess.DEVNULL)
    entries = output / "_bulk" / "shards"
    while not any(entries.glob("*.json")):
        assert driver.poll() is None
        time.sleep(0.01)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    done = len(list(entries.glob("*.json")))
    assert 0 < done < 40, "the kill came in the middle"
    summary = coded(data, "killed", shard=5)
    assert (summary.shards, summary.images, summary.failed) == (40, 199, 1)
    assert summary.shards_before >= done
    assert [row["id"] for row in table(output)] == [f"rows.parquet:{n}" for n in range(200)]
    assert contents(output) == contents(tmp_path / "whole")
    assert not (output / "_bulk" / "unfinished").exists()
