"""The toy runs, and shows what it says."""

import pytest
import torch
from PIL import Image

from examples import toy
from stepladder import StageSchedule
from stepladder.sampling.randomness import generators


@pytest.fixture(scope="module")
def shapes() -> torch.Tensor:
    return toy.shapes()


def test_the_denoiser_knows_the_image_where_there_is_hardly_any_noise(shapes):
    last = StageSchedule.uniform(3).stages[-1]
    x = shapes + 1e-3 * torch.randn(shapes.shape, generator=generators([0])[0])
    found = toy.ExactDenoiser(shapes)(x, torch.full((8,), 1e-3), last, None).clean
    assert torch.allclose(found, shapes, atol=1e-5)


def test_one_step_at_full_resolution_gives_nearly_the_mean_of_all_shapes(shapes):
    (end,) = toy.decode(toy.ExactDenoiser(shapes), scales=1, steps=1, seeds=range(8))
    assert torch.allclose(end.x, shapes.mean(dim=0, keepdim=True).expand_as(end.x), atol=1e-5)


def test_one_step_per_scale_comes_closer_to_the_shapes_and_many_steps_reach_them(shapes):
    def near(scales: int, steps: int) -> float:
        drawn = toy.decode(toy.ExactDenoiser(shapes), scales, steps, range(32))[-1].x
        return toy.distance_to_nearest(drawn, shapes)

    assert near(3, 1) < near(1, 1) / 4
    assert near(3, 16) < 0.01


def test_pixels_that_repeat_are_correlated_and_white_noise_is_not():
    noise = torch.randn((1, 1, 64, 64), generator=generators([0])[0])
    assert toy.block_correlation(noise) == pytest.approx(0, abs=0.1)
    assert toy.block_correlation(toy.up(noise)) == pytest.approx(1)


def test_the_toy_prints_three_tables_and_draws_three_pictures(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(toy, "SEEDS", range(8))  # what it prints for all of them, the check of the pages compares
    assert toy.main(["--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "0.80 -> 0.33" in said
    assert "pixels repeated          0.67                      1.00" in said
    assert "after the jump           0.80                      0.00" in said
    for name in ("stages", "jump", "one-step"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert len(picture.convert("L").getcolors()) > 10


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(toy, "SEEDS", range(1))
    (tmp_path / "file").write_text("")
    assert toy.main(["--out", str(tmp_path / "file")]) == 1
    assert capsys.readouterr().err.startswith("error: ")
