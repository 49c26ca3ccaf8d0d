import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stepladder.images import load_image, save_png
from stepladder.presets import tiny
from stepladder.tokenizer import Tokenizer
from stepladder.tokenizer_config import LadderConfig


def names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


@pytest.fixture
def flat_model(tmp_path) -> str:
    """A model without a ladder: K = 1."""
    folder = tmp_path / "flat"
    Tokenizer(replace(tiny(), ladder=LadderConfig(num_stages=1))).save_pretrained(folder)
    return str(folder)


def test_every_stage_but_the_last_becomes_a_file_coarse_first(run, model, photos):
    result = run("reconstruct", photos, "--out", "out", "--model", model, "--progressive")
    assert result.exit_code == 0
    assert names("out") == ["a-stage0.png", "a-stage1.png", "a.png", "b-stage0.png", "b-stage1.png", "b.png"]
    sizes = [load_image(f"out/{name}").size for name in ("a-stage0.png", "a-stage1.png", "a.png")]
    assert sizes == [(5, 3), (9, 5), (17, 9)]


def test_the_last_image_is_the_same_with_and_without_the_stages(run, model, photos):
    run("reconstruct", photos, "--out", "plain", "--model", model, "--seed", 3)
    run("reconstruct", photos, "--out", "stages", "--model", model, "--seed", 3, "--progressive")
    for name in names("plain"):
        assert np.array_equal(load_image(f"plain/{name}"), load_image(f"stages/{name}"))


def test_an_image_is_decoded_once_for_all_its_stages(run, model, photos, monkeypatch):
    decodes = []
    genuine = Tokenizer.decode_progressively

    def counted(self, code, **options):
        decodes.append(code)
        return genuine(self, code, **options)

    monkeypatch.setattr(Tokenizer, "decode_progressively", counted)
    run("reconstruct", photos / "a.png", "--out", "out", "--model", model, "--progressive")
    assert len(decodes) == 1


def test_stages_of_one_size_do_not_replace_each_other(run, model, tmp_path):
    save_png(Image.new("RGB", (1, 1), "teal"), tmp_path / "dot.png")
    assert run("reconstruct", "dot.png", "--out", "out", "--model", model, "--progressive").exit_code == 0
    assert names("out") == ["dot-stage0.png", "dot-stage1.png", "dot.png"]
    assert {load_image(f"out/{name}").size for name in names("out")} == {(1, 1)}


def test_json_lists_the_paths_of_the_stages(run, model, photos):
    words = ["reconstruct", photos / "a.png", "--out", "out", "--model", model, "--progressive", "--json"]
    (done,) = json.loads(run(*words).stdout)["done"]
    assert done["stages"] == [os.path.join("out", f"a-stage{stage}.png") for stage in (0, 1)]  # noqa: PTH118


def test_a_ladder_of_one_scale_has_no_stages_below(run, flat_model, photos):
    words = ["reconstruct", photos / "a.png", "--out", "out", "--model", flat_model, "--progressive", "--json"]
    (done,) = json.loads(run(*words).stdout)["done"]
    assert done["stages"] == []
    assert names("out") == ["a.png"]


def test_stages_stand_beside_comparisons(run, model, photos):
    run("reconstruct", photos / "a.png", "--out", "out", "--model", model, "--progressive", "--compare")
    assert names("out") == ["a-compare.png", "a-stage0.png", "a-stage1.png", "a.png"]


# -------------------------------------------------------------------------------------------------------------- output


def test_an_existing_stage_stays_unless_forced_and_no_work_is_done(run, refused, model, photos):
    Path("out").mkdir()
    Path("out/b-stage1.png").write_text("precious")
    words = ["reconstruct", photos, "--out", "out", "--model", model, "--progressive"]
    line = refused(*words)
    assert line == f"{Path('out/b-stage1.png')} exists already. Pass --force to replace, or name another --out."
    assert names("out") == ["b-stage1.png"]
    assert Path("out/b-stage1.png").read_text() == "precious"
    assert run(*words, "--force").exit_code == 0
    assert load_image("out/b-stage1.png").size == (4, 4)


def test_an_existing_stage_is_no_matter_without_progressive(run, model, photos):
    Path("out").mkdir()
    Path("out/b-stage1.png").write_text("precious")
    assert run("reconstruct", photos, "--out", "out", "--model", model).exit_code == 0
    assert Path("out/b-stage1.png").read_text() == "precious"


def test_other_results_are_refused_before_the_model_is_looked_for(refused, photos):
    save_png(Image.new("RGB", (2, 2)), "out/a.png")
    line = refused("reconstruct", photos, "--out", "out", "--model", "nope", "--progressive")
    assert "a.png exists already." in line


def test_a_stage_that_meets_another_reconstruction_is_refused(refused, model, photos):
    save_png(Image.new("RGB", (2, 2)), photos / "a-stage0.png")
    line = refused("reconstruct", photos, "--out", "out", "--model", model, "--progressive", code=2)
    assert f"would both become {Path('out/a-stage0.png')}." in line
    assert not Path("out").exists()


def test_an_input_is_never_overwritten_by_a_stage(refused, model, photos):
    save_png(Image.new("RGB", (3, 3)), "out/b-stage0.png")
    (photos / "link.png").symlink_to(Path("out/b-stage0.png").resolve())
    words = ["reconstruct", photos / "b.jpg", photos / "link.png", "--out", "out", "--model", model]
    line = refused(*words, "--progressive", "--force")
    assert line == f"{Path('out/b-stage0.png')} is an input and is not overwritten. Name another --out."
    assert names("out") == ["b-stage0.png"]
    assert load_image("out/b-stage0.png").size == (3, 3)
