"""Photographs to try, which ship with scikit-image and scikit-learn; nothing is fetched.

Astronaut and rocket: public domain or CC0 (NASA, SpaceX). Cat and coffee: CC0. China and flower: CC BY 2.0, by the
authors that scikit-learn names.
"""

from PIL import Image

from stepladder.errors import MissingDependencyError

__all__ = ["photographs"]


def photographs() -> dict[str, Image.Image]:
    """Photographs by name, of 300 to 512 pixels on their short side.

    Raises:
        MissingDependencyError: If scikit-image or scikit-learn is not installed.
    """
    try:
        from skimage import data
        from sklearn.datasets import load_sample_image
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"The example photographs need the package {error.name}, which is not installed. It comes with the extra "
            "'page'. Run pip install 'stepladder[page]'."
        ) from error
    pixels = {
        "astronaut": data.astronaut(),
        "cat": data.chelsea(),
        "coffee": data.coffee(),
        "rocket": data.rocket(),
        "china": load_sample_image("china.jpg"),
        "flower": load_sample_image("flower.jpg"),
    }
    return {name: Image.fromarray(values) for name, values in pixels.items()}
