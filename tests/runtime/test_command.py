"""`stepladder-runtime`, and where it runs."""

import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stepladder.images import load_image, to_tensor
from stepladder.latents import read_latents, write_latents
from stepladder.runtime.command import main
from stepladder.seeds import seed_of

ROOT = Path(__file__).parents[2]
BLOCK_TORCH = "import sys; sys.modules['torch'] = None; sys.modules['jaxtyping'] = None\n"


@pytest.fixture
def photo(tmp_path) -> Path:
    path = tmp_path / "photo.png"
    values = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    Image.fromarray(values).resize((45, 30)).save(path)
    return path


def refused(capsys, *arguments) -> tuple[int, str]:
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return stopped.value.code, captured.err


def test_images_go_through_files_as_with_torch(folder, tokenizer, photo, tmp_path, capsys):
    latents = tmp_path / "z.safetensors"
    main(["encode", str(folder), str(photo), "--out", str(latents)])
    assert capsys.readouterr().out == f"{latents}\n"
    stored = read_latents(latents).latents[0]
    code = tokenizer.encode(to_tensor(load_image(photo))[None])
    assert (stored.name, stored.size) == ("photo", (30, 45))
    np.testing.assert_allclose(stored.values, code.latent[0], atol=2e-5)

    main(["decode", str(folder), str(latents), "--out", str(tmp_path / "a"), "--seed", "5"])
    main(["reconstruct", str(folder), str(photo), "--out", str(tmp_path / "b"), "--seed", "5"])
    decoded, both = (to_tensor(load_image(tmp_path / name / "photo.png")) for name in "ab")
    assert (decoded == both).all()
    assert (decoded - tokenizer.decode(code, seeds=[5])[0]).abs().max() < 1.1 / 127.5


def test_without_noise_there_is_no_seed(folder, tokenizer, photo, tmp_path, capsys):
    main(["reconstruct", str(folder), str(photo), "--out", str(tmp_path / "out"), "--noise", "zero"])
    found = to_tensor(load_image(tmp_path / "out" / "photo.png"))
    code = tokenizer.encode(to_tensor(load_image(photo))[None])
    assert (found - tokenizer.decode(code, noise="zero")[0]).abs().max() < 1.1 / 127.5
    capsys.readouterr()
    words = ("reconstruct", folder, photo, "--out", tmp_path / "other", "--noise", "zero", "--seed", 3)
    assert refused(capsys, *words) == (
        2,
        "error: --seed 3 does not fit a decode without noise. Leave it out.\n",
    )


@pytest.mark.parametrize("seed", ["-1", str(2**63), "1.5"])
def test_a_seed_out_of_range_is_wrong_usage(seed, folder, photo, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["reconstruct", str(folder), str(photo), "--out", str(tmp_path / "out"), "--seed", seed])
    assert stopped.value.code == 2
    accepted = f"argument --seed: '{seed}' is no seed. Accepted: whole numbers from 0 to {2**63 - 1}.\n"
    assert capsys.readouterr().err.endswith(accepted)
    assert not (tmp_path / "out").exists()


def test_an_interrupt_is_one_word(folder, photo, tmp_path, capsys, monkeypatch):
    def stop(*_arguments, **_options):
        raise KeyboardInterrupt

    monkeypatch.setattr("stepladder.runtime.command.load_image", stop)
    assert refused(capsys, "reconstruct", folder, photo, "--out", tmp_path / "out") == (130, "interrupted\n")
    assert not (tmp_path / "out").exists()


def test_an_image_that_cannot_be_read_does_not_stop_the_others(folder, photo, tmp_path, capsys):
    torn = tmp_path / "torn.png"
    torn.write_bytes(photo.read_bytes()[:60])
    latents, out = tmp_path / "z.safetensors", tmp_path / "out"
    for words in (
        ["reconstruct", folder, torn, photo, "--out", out],
        ["encode", folder, torn, photo, "--out", latents],
    ):
        with pytest.raises(SystemExit, match="1"):
            main([str(word) for word in words])
        assert capsys.readouterr().err.startswith("error: Cannot read image")
    assert [path.name for path in out.iterdir()] == ["photo.png"]
    assert [stored.name for stored in read_latents(latents).latents] == ["photo"]
    assert refused(capsys, "encode", folder, torn, "--out", tmp_path / "none")[0] == 1
    assert not (tmp_path / "none").exists()


def test_nothing_is_overwritten(folder, photo, tmp_path, capsys):
    out = tmp_path / "out"
    main(["reconstruct", str(folder), str(photo), "--out", str(out)])
    capsys.readouterr()
    code, line = refused(capsys, "reconstruct", folder, photo, "--out", out)
    assert code == 1
    assert "photo.png exists already. Pass --force to replace it, or name another --out." in line
    main(["reconstruct", str(folder), str(photo), "--out", str(out), "--force"])


def test_latents_of_another_encoder_are_refused(folder, tmp_path, photo, capsys):
    latents = tmp_path / "z"
    main(["encode", str(folder), str(photo), "--out", str(latents)])
    capsys.readouterr()
    write_latents(latents, replace(read_latents(latents), fingerprint="0" * 16), force=True)
    code, line = refused(capsys, "decode", folder, latents, "--out", tmp_path / "out")
    assert code == 1
    assert "come from another encoder (model 'tiny', fingerprint 0000000000000000)" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [("info", "nowhere"), ("reconstruct", "nowhere", "x.png", "--out", "out")])
def test_a_folder_that_is_no_export_is_one_line(words, capsys):
    code, line = refused(capsys, *words)
    assert code == 1
    assert line.startswith("error: nowhere is no exported model: manifest.json: No such file or directory.")


def test_the_manifest_is_printed(folder, capsys):
    main(["info", str(folder)])
    assert '"model": "tiny"' in capsys.readouterr().out


def test_the_runtime_imports_no_torch_and_works_where_there_is_none(folder, photo, tmp_path):
    code = BLOCK_TORCH + "from stepladder.runtime.command import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", code, "reconstruct", folder, photo, "--out", tmp_path / "out"]
    subprocess.run(command, check=True, capture_output=True)
    assert (tmp_path / "out" / "photo.png").exists()
    code = "import sys, stepladder.runtime.command; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not {"torch", "jaxtyping", "typer", "rich", "huggingface_hub", "onnxruntime"} & set(loaded)


def test_the_distribution_without_torch_holds_what_the_runtime_imports():
    code = "import sys, stepladder.runtime.command; print(*(n for n in sys.modules if n.startswith('stepladder')))"
    names = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    imported = {name.removeprefix("stepladder").lstrip(".").split(".")[0] or "__init__" for name in names}
    project = tomllib.loads((ROOT / "packages/runtime/pyproject.toml").read_text("utf-8"))
    held = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"].values()
    assert {Path(file).stem for file in held} - {"LICENSE", "py"} == imported


@pytest.mark.slow
def test_the_distribution_without_torch_decodes_as_torch_does(folder, tokenizer, photo, tmp_path):
    """Needs a package index."""
    environment, wheels = tmp_path / "environment", tmp_path / "wheels"
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", ROOT / "packages/runtime"]
    subprocess.run([*build, "-w", wheels], check=True)
    (wheel,) = wheels.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    python = environment / "bin" / "python"
    constraints = ["--constraint", ROOT / "constraints.txt"]
    subprocess.run([python, "-m", "pip", "install", "-q", *constraints, f"{wheel}[onnxruntime]"], check=True)
    absent = subprocess.run([python, "-c", "import torch"], check=False, capture_output=True, text=True)
    assert "No module named 'torch'" in absent.stderr
    command = [environment / "bin" / "stepladder-runtime", "reconstruct", folder, photo, "--out", tmp_path / "out"]
    subprocess.run(command, check=True)
    code = tokenizer.encode(to_tensor(load_image(photo))[None])
    found = to_tensor(load_image(tmp_path / "out" / "photo.png"))
    assert (found - tokenizer.decode(code, seeds=[seed_of("photo")])[0]).abs().max() < 1.1 / 127.5
