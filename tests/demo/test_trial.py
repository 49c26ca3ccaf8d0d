"""What the page shows of models on images, and when."""

import logging
from dataclasses import replace

import pytest

from stepladder.demo.settings import Settings
from stepladder.demo.trial import run_trial, run_trials
from stepladder.errors import ImageError
from stepladder.images import to_tensor

SETTINGS = Settings(models=("tiny",), seed=3)


def test_a_trial_shows_one_stage_more_at_a_time_and_ends_with_what_decode_gives(offered, picture):
    model = offered()
    views = list(run_trial(model, picture, replace(SETTINGS, steps="2")))
    assert [len(view.stages) for view in views] == [1, 2, 3]
    assert [view.fidelity is not None for view in views] == [False, False, True]
    last = views[-1]
    code = model.tokenizer.encode(to_tensor(picture)[None])
    decoded = model.tokenizer.decode(code, seeds=[3], steps=2)
    assert (to_tensor(last.stages[-1].image) - decoded[0]).abs().max() <= 1 / 255 + 1e-6
    assert last.bits_per_pixel == pytest.approx(16 * 3 * 5 * 32 / (40 * 18))
    assert last.seconds == last.decode.encoding_seconds + sum(stage.seconds for stage in last.stages)


def test_the_steps_of_a_model_count_where_the_visitor_leaves_them_to_it(offered, picture):
    model = offered()
    images = [
        list(run_trial(each, picture, replace(SETTINGS, steps=steps)))[-1].stages[-1].image
        for each, steps in ((model, "default"), (model, "1"), (replace(model, steps=2), "default"))
    ]
    assert images[0] == images[1] != images[2]


def test_a_size_cuts_the_central_square_first(offered, picture):
    (*_, last) = run_trial(offered(), picture, replace(SETTINGS, size="64"))
    assert last.original.size == last.stages[-1].image.size == (64, 64)


def test_a_model_of_one_size_says_which_size_to_choose(offered, picture):
    model = offered("tokens", tokens=True)
    (view,) = run_trial(model, picture, SETTINGS)
    side = model.only_side
    assert view.failure == (
        f"tokens does not take images of 40 x 18. It takes {side} x {side} only. Choose the size {side}."
    )


def broken(model, error):
    """The model with an encoder that fails."""

    def fail(*_, **__):
        raise error

    model.tokenizer.encode = fail
    return model


def test_an_error_of_the_library_is_said_as_it_is(offered, picture):
    (view,) = run_trial(broken(offered(), ImageError("The image is odd.\nUse another.")), picture, SETTINGS)
    assert view.failure == "The image is odd. Use another."


def test_too_little_memory_is_a_sentence(offered, picture):
    (view,) = run_trial(broken(offered(), MemoryError()), picture, SETTINGS)
    assert view.failure.startswith("There is not enough memory for tiny on this image.")


def test_an_unforeseen_error_is_a_sentence_for_the_visitor_and_a_traceback_for_the_log(offered, picture, caplog):
    with caplog.at_level(logging.ERROR, logger="stepladder"):
        (view,) = run_trial(broken(offered(), ZeroDivisionError("secret")), picture, SETTINGS)
    assert view.failure == "tiny failed, which nobody foresaw (ZeroDivisionError). The terminal of the page says more."
    assert caplog.records[0].exc_info[0] is ZeroDivisionError


def test_several_models_and_images_give_one_finished_view_for_each_pair(offered, picture):
    models = [offered("a"), broken(offered("b"), ImageError("It is odd.")), offered("c")]
    views = list(run_trials(models, {"x": picture, "y": picture.resize((16, 16))}, SETTINGS))
    assert [(view.model, view.original.size) for view in views] == [
        (name, size) for size in ((40, 18), (16, 16)) for name in "abc"
    ]
    assert [bool(view.failure) for view in views] == [False, True, False] * 2


def test_a_model_warms_up_whatever_sizes_it_takes(offered):
    for tokens in (False, True):
        offered(tokens=tokens).warm_up()
