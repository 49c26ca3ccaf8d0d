"""Half precision beside float32: which models are compared."""

from benchmarks import precision
from stepladder.models import parse_model_spec


def test_every_released_model_that_encodes_is_compared_in_at_most_four_steps():
    found = [parse_model_spec(model) for model in precision.released()]
    names = {path.name for path in precision.MODELS.iterdir() if path.is_dir()}
    assert {spec.name.rpartition("/")[2] for spec in found} == names - {"flux2-tiny"}  # which holds a decoder alone
    assert {spec.steps for spec in found} == {1, precision.MOST_STEPS}
