"""Settings come from controls and links; what is not on offer is said."""

import pytest

from stepladder.demo.settings import AS_IT_IS, AS_NAMED, Settings, check_seed, from_link
from stepladder.errors import ConfigError

MODELS, EXAMPLES = ("photo", "photo-base@8"), ("astronaut", "cat")


def read(**query):
    return from_link(query, models=MODELS, examples=EXAMPLES)


def test_a_link_without_settings_gives_the_first_model_and_example():
    assert read() == (Settings(models=("photo",), example="astronaut"), ())


def test_a_link_names_every_setting():
    settings, refused = read(models="photo-base@8,photo", steps="4", seed="7", size="256", example="cat")
    assert settings == Settings(models=MODELS, steps="4", seed=7, size="256", example="cat")
    assert (settings.steps_per_stage, settings.side) == (4, 256)
    assert refused == ()


def test_defaults_leave_steps_to_the_model_and_the_image_as_it_is():
    settings = Settings(models=MODELS, steps=AS_NAMED, size=AS_IT_IS)
    assert (settings.steps_per_stage, settings.side) == (None, None)


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"models": "photo,secret"}, "model 'secret', which is not on this page. Offered: photo, photo-base@8."),
        ({"steps": "1000000"}, "steps '1000000', which is not on this page. Offered: default, 1, 2, 4, 8, 16, 32."),
        ({"size": "-1"}, "size '-1', which is not on this page. Offered: as it is, 64,"),
        ({"example": "../../etc/passwd"}, "example '../../etc/passwd', which is not on this page."),
        ({"example": "x" * 5000}, "x" * 40 + " ...'"),
        ({"seed": "-1"}, "Seed -1 is no whole number of 0 to 9007199254740991. Enter one, for example 0."),
        ({"seed": "9" * 30}, "is no whole number"),
        ({"seed": "1e3"}, "Seed 1e3 is no whole number"),
    ],
)
def test_what_a_link_asks_for_and_is_not_there_is_said_and_left_out(query, said):
    settings, (refused,) = read(**query)
    assert settings == Settings(models=("photo",), example="astronaut")
    assert said in refused


def test_a_page_without_examples_takes_a_link_without_one():
    settings, refused = from_link({}, models=MODELS, examples=())
    assert (settings.example, refused) == ("", ())


@pytest.mark.parametrize(
    ("seed", "said"), [(None, "An empty seed"), (-1, "Seed -1"), (0.5, "Seed 0.5"), ("1", "Seed 1")]
)
def test_a_seed_that_is_no_whole_number_is_refused(seed, said):
    with pytest.raises(ConfigError, match=f"{said} is no whole number of 0 to"):
        check_seed(seed)


@pytest.mark.parametrize("seed", [float("nan"), float("inf"), 2**53])
def test_a_seed_that_a_browser_cannot_hold_is_refused(seed):
    with pytest.raises(ConfigError):
        check_seed(seed)


def test_a_seed_may_come_as_a_float():
    assert check_seed(3.0) == 3
