"""`encode` and `decode`."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from stepladder.bottlenecks import FSQConfig, VQConfig
from stepladder.images import load_image, to_tensor
from stepladder.latents import read_latents, write_latents
from stepladder.presets import tiny, tiny_tokens
from stepladder.seeds import seed_of
from stepladder.stored import _digest
from stepladder.tokenizer import Tokenizer


@pytest.fixture
def latents(run, model, photos):
    assert run("encode", photos, "--out", "z.safetensors", "--model", model).exit_code == 0
    return Path("z.safetensors")


@pytest.fixture(scope="session")
def stranger(tmp_path_factory):
    """A model of the same shape with other weights."""
    folder = tmp_path_factory.mktemp("models") / "stranger"
    with torch.random.fork_rng():
        torch.manual_seed(1)
        Tokenizer(tiny()).save_pretrained(folder)
    return str(folder)


# -------------------------------------------------------------------------------------------------------------- encode


@pytest.mark.parametrize("name", ["z.npy", "photo.JPG"])
def test_latents_are_not_written_to_what_looks_like_something_else(refused, photos, name, tmp_path):
    path = tmp_path / name
    path.write_bytes(b"precious")
    (tmp_path / "link").symlink_to(path)
    for out in (path, tmp_path / "link"):
        said = refused("encode", photos, "--out", out, "--force", code=2)
        assert said.startswith(f"Latents are written as a safetensors file, and {path} ends in {path.suffix}. Pass")
    assert path.read_bytes() == b"precious"


def test_latents_of_one_precision_are_decoded_in_another(run, model, latents, photos):
    assert run("encode", photos, "--out", "half.safetensors", "--model", model, "--dtype", "bfloat16").exit_code == 0
    for file, dtype in (("half.safetensors", "float32"), (latents, "bfloat16")):
        assert run("decode", file, "--out", dtype, "--dtype", dtype, "--model", model).exit_code == 0


def test_encode_stores_the_latent_of_each_image_under_its_name(run, model, latents, photos):
    content = read_latents(latents)
    tokenizer = Tokenizer.from_pretrained(model)
    assert (content.model, content.fingerprint) == (model, tokenizer.fingerprint())
    assert [(stored.name, stored.size) for stored in content.latents] == [("a", (9, 17)), ("b", (8, 8))]
    assert content.latents[0].values.shape == (16, 2, 3)


def test_encode_reports_a_table_or_json(run, model, photos):
    table = run("encode", photos, "--out", "z", "--model", model).stdout
    assert f"{model}, in z" in table
    assert "16 x 2 x 3" in table
    report = json.loads(run("encode", photos, "--out", "y", "--model", model, "--json").stdout)
    assert (report["model"], report["output"], report["device"], report["failed"]) == (model, "y", "cpu", [])
    assert report["fingerprint"] == Tokenizer.from_pretrained(model).fingerprint()
    assert report["codebook_size"] is None
    assert report["done"][1] == {
        "input": str(photos / "b.jpg"),
        "name": "b",
        "width": 8,
        "height": 8,
        "latent_shape": [16, 1, 1],
        "latent_bytes": 64,
        "bits_per_pixel": 8.0,
    }


def test_encode_goes_on_after_a_bad_image_and_writes_nothing_if_all_are_bad(run, model, photos):
    (photos / "aa.png").touch()
    result = run("encode", photos, "--out", "z", "--model", model, "--json")
    assert result.exit_code == 1
    assert "it is empty (0 bytes)" in result.stderr
    assert "2 of 3 done, 1 failed." in result.stderr
    assert [Path(failed["input"]).name for failed in json.loads(result.stdout)["failed"]] == ["aa.png"]
    assert len(read_latents("z").latents) == 2
    result = run("encode", photos / "aa.png", "--out", "none", "--model", model, "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout)["output"] is None
    assert not Path("none").exists()


def test_encode_says_that_steps_are_ignored(run, model, photos):
    result = run("encode", photos, "--out", "z", "--model", f"{model}@8")
    assert result.exit_code == 0
    assert result.stderr == "warning: encoding takes no steps; @8 is ignored.\n"


def test_encode_refuses_before_work_what_cannot_be_stored(run, refused, model, photos, tmp_path):
    Path("z").write_text("precious")
    assert refused("encode", photos, "--out", "z", "--model", "nope").startswith("z exists already. Pass --force")
    assert run("encode", photos, "--out", "z", "--model", model, "--force").exit_code == 0

    (tmp_path / "folder").mkdir()
    assert refused("encode", photos, "--out", "folder") == "Cannot write folder: it is a folder. Name another --out."

    target = (photos / "a.png").rename(tmp_path / "a")
    assert "is an input and is not overwritten" in refused("encode", target, "--out", target, "--force")

    target.rename(photos / "a.png")
    Image.new("RGB", (2, 2)).save(tmp_path / "a.webp")
    line = refused("encode", photos, "a.webp", "--out", "y", "--model", "nope", code=2)
    assert line.startswith(f"{photos / 'a.png'} and a.webp would both become latent 'a'. Rename one")

    Image.new("RGB", (2, 2)).save(tmp_path / "line\nbreak.png")
    line = refused("encode", "line\nbreak.png", "--out", "y", "--model", "nope")
    assert line == r"Latent name 'line\nbreak' cannot be stored. Rename the image to a plain file name."


# -------------------------------------------------------------------------------------------------------------- decode


def test_decode_brings_back_what_reconstruct_gives(run, model, photos, latents):
    run("reconstruct", photos, "--out", "one", "--model", f"{model}@1", "--seed", 4)
    assert run("decode", latents, "--out", "two", "--model", f"{model}@1", "--seed", 4).exit_code == 0
    for name in ("a.png", "b.png"):
        assert np.array_equal(load_image(Path("one") / name), load_image(Path("two") / name))


def test_decode_takes_the_model_that_the_file_names_and_says_so(run, model, latents):
    result = run("decode", latents, "--out", "out", "--json")
    assert result.exit_code == 0
    assert result.stderr == f"Decoding with '{model}', the model that z.safetensors names; --model names another.\n"
    report = json.loads(result.stdout)
    (a, b) = report.pop("done")
    assert report == {
        "model": model,
        "steps_per_stage": 2,
        "stages": 3,
        "network_evaluations": 6,
        "guidance": 1.0,
        "sampler": "euler",
        "texture": 1.0,
        "shift": None,
        "noise": "drawn",
        "compiled": False,
        "seed": None,
        "device": "cpu",
        "dtype": "float32",
        "failed": [],
    }
    assert a.pop("seconds") > 0
    assert a == {"name": "a", "output": str(Path("out/a.png")), "seed": seed_of("a"), "width": 17, "height": 9}
    assert b["name"] == "b"


def test_decode_prints_a_table(run, model, latents):
    out = run("decode", latents, "--out", "out", "--model", model).stdout
    assert f"{model}, 2 steps in each of 3 stages, in out" in out
    assert "17 x 9" in out


def test_decode_says_which_model_is_missing_and_who_named_it(run, photos, model, tmp_path):
    (tmp_path / "copy").mkdir()
    for file in Path(model).iterdir():
        (tmp_path / "copy" / file.name).write_bytes(file.read_bytes())
    run("encode", photos, "--out", "z", "--model", "copy")
    (tmp_path / "copy").rename(tmp_path / "gone")
    result = run("decode", "z", "--out", "out")
    assert result.exit_code == 1
    first, second = result.stderr.splitlines()
    assert first == "Decoding with 'copy', the model that z names; --model names another."
    assert second.startswith("error: Unknown model 'copy'.")
    assert run("decode", "z", "--out", "out", "--model", "gone").exit_code == 0


def test_decode_refuses_another_encoder(refused, latents, stranger):
    line = refused("decode", latents, "--out", "out", "--model", stranger)
    assert line.startswith("The latents come from another encoder (model ")
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("content", "text"),
    [(b"", "is no safetensors file, or it is damaged"), (b"hello world", "is no safetensors file, or it is damaged")],
)
def test_decode_refuses_what_is_no_latent_file(refused, content, text):
    Path("z").write_bytes(content)
    assert text in refused("decode", "z", "--out", "out")


def test_decode_refuses_a_missing_a_foreign_and_a_damaged_file(refused, latents):
    assert refused("decode", "no", "--out", "out") == "Cannot read latents no: there is no such file. Check the path."
    save_file({"w": torch.zeros(2)}, "weights.safetensors")
    assert "holds no latents of images" in refused("decode", "weights.safetensors", "--out", "out")
    data = bytearray(latents.read_bytes())
    data[-1] ^= 1
    latents.write_bytes(data)
    assert "are damaged (their SHA-256 is not the one in the file)" in refused("decode", latents, "--out", "out")


def test_decode_keeps_what_exists(run, refused, model, latents):
    Path("out").mkdir()
    Path("out/a.png").write_text("precious")
    line = refused("decode", latents, "--out", "out", "--model", "nope")
    assert line == f"{Path('out/a.png')} exists already. Pass --force to replace, or name another --out."
    assert Path("out/a.png").read_text() == "precious"
    assert run("decode", latents, "--out", "out", "--model", model, "--force").exit_code == 0
    assert load_image("out/a.png").size == (17, 9)


def test_decode_refuses_steps_of_zero(refused, model, latents):
    assert "Steps per stage '0'" in refused("decode", latents, "--out", "out", "--model", f"{model}@0", code=2)


# ------------------------------------------------------------------------------------------------- quantised and tokens


LEVELS = [8, 5, 5, 5]


@pytest.fixture(scope="session")
def quantised(tmp_path_factory):
    """Models with code indices: a grid of 1,000 codes, tokens of 1,000 codes, and a grid of 64 codes."""
    configs = {
        "grid": replace(tiny(), latent_channels=4, bottleneck=FSQConfig(levels=LEVELS)),
        "tokens": replace(tiny_tokens(), bottleneck=FSQConfig(levels=LEVELS)),
        "vq": replace(tiny(), latent_channels=4, bottleneck=VQConfig(codebook_size=64)),
    }
    parent = tmp_path_factory.mktemp("quantised")
    for name, config in configs.items():
        tokenizer, generator = Tokenizer(config), torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in tokenizer.parameters():
                parameter.normal_(0, 0.3, generator=generator)
        tokenizer.save_pretrained(parent / name)
    return parent


@pytest.mark.parametrize(("name", "codes", "dtype"), [("grid", 1000, torch.uint16), ("vq", 64, torch.uint8)])
def test_encode_writes_integers_for_a_quantised_model(run, quantised, photos, name, codes, dtype):
    model = str(quantised / name)
    report = json.loads(run("encode", photos, "--out", "z", "--model", model, "--json").stdout)
    assert report["codebook_size"] == codes
    assert report["done"][0]["latent_shape"] == [2, 3]
    assert report["done"][0]["latent_bytes"] == 6 * dtype.itemsize
    assert report["done"][0]["bits_per_pixel"] == pytest.approx(6 * math.log2(codes) / (17 * 9))
    with safe_open("z", framework="pt") as file:
        assert file.get_tensor("a").dtype == dtype
    tokenizer = Tokenizer.from_pretrained(model)
    code = tokenizer.encode(to_tensor(load_image(photos / "a.png"))[None])
    stored = read_latents("z").latents[0]
    assert torch.equal(stored.values, code.indices[0])
    assert torch.equal(tokenizer.latent_from_indices(stored.values[None]), code.latent)


@pytest.mark.parametrize("name", ["grid", "vq"])
def test_indices_decode_to_what_reconstruct_gives(run, quantised, photos, name):
    model = str(quantised / name)
    run("encode", photos, "--out", "z", "--model", model)
    run("reconstruct", photos, "--out", "one", "--model", f"{model}@1", "--seed", 4)
    assert run("decode", "z", "--out", "two", "--model", f"{model}@1", "--seed", 4).exit_code == 0
    for file in ("a.png", "b.png"):
        assert np.array_equal(load_image(Path("one") / file), load_image(Path("two") / file))


def test_tokens_are_stored_as_a_list_of_integers_and_decode(run, quantised, tmp_path):
    model = str(quantised / "tokens")
    Image.new("RGB", (32, 32), (200, 60, 30)).save(tmp_path / "square.png")
    table = run("encode", "square.png", "--out", "z", "--model", model).stdout
    assert f"{6 * math.log2(1000) / 32**2:.2f}" in table
    assert read_latents("z").latents[0].values.shape == (6,)
    assert run("decode", "z", "--out", "out", "--model", f"{model}@1").exit_code == 0
    assert load_image("out/square.png").size == (32, 32)


def test_encode_says_which_image_has_a_size_that_a_model_of_tokens_does_not_take(run, quantised, photos):
    result = run("encode", photos, "--out", "z", "--model", quantised / "tokens")
    assert result.exit_code == 1
    assert "Image size 17 x 9 does not fit a model with 6 latent tokens for 32 x 32." in result.stderr
    assert not Path("z").exists()


def test_decode_refuses_indices_of_another_codebook_and_latents_of_another_kind(run, refused, quantised, model, photos):
    run("encode", photos, "--out", "codes", "--model", quantised / "grid")
    run("encode", photos, "--out", "floats", "--model", model)
    for file, named, text in (
        ("codes", quantised / "vq", "holds indices of 1,000 codes; model '.*vq' takes indices of 64 codes"),
        ("codes", model, "holds indices of 1,000 codes; model '.*tiny' takes latents"),
        ("floats", quantised / "grid", "holds latents; model '.*grid' takes indices of 1,000 codes"),
        ("codes", quantised / "tokens", "'a' is of an image of 17 x 9, a size that model '.*tokens' does not take"),
    ):
        assert re.search(text, refused("decode", file, "--out", "out", "--model", named))
    assert not Path("out").exists()


def test_decode_refuses_indices_outside_the_codebook(run, refused, quantised, photos):
    run("encode", photos, "--out", "z", "--model", quantised / "grid")
    content = read_latents("z")
    last = tuple(replace(stored, values=torch.full_like(stored.values, 999)) for stored in content.latents)
    write_latents("z", replace(content, latents=last), force=True)
    with safe_open("z", framework="pt") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in ("a", "b")}, file.metadata()
    smaller = {**metadata, "format_version": "2", "codebook_size": "900"}  # a version whose hash leaves the size out
    save_file(
        tensors,
        "z",
        metadata={**smaller, "sha256": _digest({name: value.numpy() for name, value in tensors.items()}, smaller)},
    )
    line = refused("decode", "z", "--out", "out", "--model", quantised / "grid")
    assert "are damaged (index 999 of 'a' is outside the codebook, 0 to 899). Encode the images again." in line
