"""Pictures and texts of the page."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from stepladder.demo import markup
from stepladder.demo.pictures import ERROR_LIMIT, enlarged, error_map, error_scale, inline, middle
from stepladder.demo.settings import Settings
from stepladder.demo.trial import View, run_trial, run_trials

SETTINGS = Settings(models=("tiny",))


def grey(value, size=(4, 2)):
    return Image.new("RGB", size, (value, value, value))


def test_an_error_map_is_dark_where_images_agree_and_brightest_from_the_limit_on():
    colours = [error_map(grey(100 + error), grey(100)).getpixel((0, 0)) for error in (0, ERROR_LIMIT, ERROR_LIMIT + 50)]
    assert colours[0] == (0, 0, 4)
    assert colours[1] == colours[2] == (252, 255, 164)


def test_an_error_map_takes_the_mean_of_the_channels_whatever_their_sign():
    original = Image.new("RGB", (1, 1), (100, 100, 100))
    moved = Image.new("RGB", (1, 1), (112, 88, 100))
    assert error_map(moved, original) == error_map(grey(108, (1, 1)), original)


def test_the_scale_runs_from_no_error_to_the_limit():
    scale = error_scale()
    assert scale.getpixel((0, 0)) == (0, 0, 4)
    assert scale.getpixel((scale.width - 1, 0)) == (252, 255, 164)
    lightness = np.asarray(scale.convert("L"), dtype=int)[0]
    assert (np.diff(lightness) >= 0).all()


def test_a_coarse_stage_becomes_squares_and_is_cut_to_the_original():
    stage = Image.fromarray(np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3))
    large = enlarged(stage, 4, (9, 7))
    assert large.size == (9, 7)
    assert large.getpixel((3, 3)) == stage.getpixel((0, 0))
    assert large.getpixel((4, 4)) == stage.getpixel((1, 1))


def test_a_picture_inside_the_text_is_small_and_keeps_its_shape():
    address = inline(Image.new("RGB", (400, 200), "teal"), side=100)
    head, data = address.split(",")
    assert head == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (100, 50)


def test_a_picture_that_is_smaller_is_shown_in_squares():
    data = inline(Image.fromarray(np.diag([255] * 10).astype(np.uint8)).convert("RGB"), side=256).split(",")[1]
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("L"), dtype=int)
    assert picture.shape == (250, 250)
    assert picture[5:20, 5:20].min() > 200 > 50 > picture[5:20, 30:45].max()


def test_the_middle_of_an_image_is_a_share_of_each_side():
    image = Image.fromarray(np.arange(8 * 12 * 3, dtype=np.uint16).astype(np.uint8).reshape(8, 12, 3))
    assert middle(image, 0.5).size == (6, 4)
    assert middle(image, 0.5).getpixel((0, 0)) == image.getpixel((3, 2))
    assert middle(image, 1).tobytes() == image.tobytes()


@pytest.mark.parametrize("text", [markup.alert("<script>alert(1)</script>"), markup.note("<b>"), markup.heading("<i>")])
def test_words_of_others_are_never_markup(text):
    assert not any(tag in text for tag in ("<script", "<b>", "<i>"))
    assert "&lt;" in text


def test_a_strip_shows_the_stages_that_are_there_and_room_for_the_others(offered, picture):
    views = list(run_trial(offered(), picture, SETTINGS))
    counts = [(markup.strip(view).count("<img"), markup.strip(view).count("sl-wait")) for view in views]
    assert counts == [(1, 2), (2, 1), (3, 0)]
    for size in ("10 x 5", "20 x 9", "40 x 18"):
        assert size in markup.strip(views[-1])
    assert markup.strip(View(model="tiny", original=picture)) == ""
    assert "the middle of the image" not in markup.strip(views[-1])


def test_a_strip_of_a_large_image_shows_its_middle_where_stages_differ(offered, picture):
    large = picture.resize((640, 288), Image.Resampling.NEAREST)
    *_, view = run_trial(offered(), large, SETTINGS)
    assert "Stages: the middle of the image, enlarged" in markup.strip(view)
    assert inline(middle(view.stages[0].image, 64 / 160), side=256) in markup.strip(view)


def test_the_table_holds_what_was_measured(offered, picture):
    (*_, view) = run_trial(offered(), picture, SETTINGS)
    table = markup.facts([view])
    wanted = ["tiny", f"{view.fidelity.psnr_db:.2f}", f"{view.fidelity.ssim:.4f}", f"{view.fidelity.colour_shift:.4f}"]
    wanted += ["16 x 3 x 5, 0.9 KiB", f"{16 * 3 * 5 * 32 / (40 * 18):.2f}", f"{view.seconds:.2f}"]
    wanted.append(" + ".join(f"{stage.seconds * 1000:.0f}" for stage in view.stages))
    for cell in wanted:
        assert f"<td>{cell}</td>" in table
    assert markup.facts([]) == ""


def test_means_are_over_the_images_that_a_model_is_done_with(offered, picture):
    views = list(
        run_trials([offered("a"), offered("b", tokens=True)], {"x": picture, "y": picture.rotate(180)}, SETTINGS)
    )
    table = markup.means(views)
    first, second = (view.fidelity.psnr_db for view in views if view.fidelity)
    assert f"<td>a</td><td>2</td><td>{(first + second) / 2:.2f}</td>" in table
    assert "<td>b</td>" not in table
