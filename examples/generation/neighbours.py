"""The training images that are nearest to drawn ones: how much of a prior is memory?

    distance(a, b) = 1 - cos(features(a), features(b)),   the smaller of that of `a` and of its mirror image

because the prior saw every image in both views. A prior that draws new images is as far from its training images as
images are that it has not seen; one that repeats them is nearer.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from examples.generation.latents import batches
from stepladder.data import ImageSource
from stepladder.errors import ConfigError
from stepladder.images import centre_crop_resize, load_image, to_tensor
from stepladder.measure.metrics import quantise

__all__ = ["Neighbours", "TrainingImages"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Neighbours:
    """The nearest training images of each image, nearest first."""

    distances: Float[Tensor, "b k"]
    """0 for the same features, 1 for features that share nothing."""
    places: Int[Tensor, "b k"]
    """In the training images."""
    images: Float[Tensor, "b k 3 s s"]
    """Mirrored where that is nearer."""


class TrainingImages:
    """Finds neighbours among training images."""

    def __init__(
        self,
        source: ImageSource,
        side: int,
        features: Callable[[Tensor], Tensor],
        *,
        batch: int = 50,
        device: torch.device | str = "cpu",
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Takes the features of all images.

        Args:
            source: The images.
            side: To which they are cut.
            features: Images in [-1, 1] to (B, D).
            batch: Images at once.
            device: Where `features` is.
            on_progress: Called with the images done and their number.

        Raises:
            ImageError: If an image cannot be read.
        """
        self._source, self._side, self._network = source, side, features
        found: list[Tensor] = []
        for images in batches(source, side, batch):
            found.append(self._features(images.to(device)))
            if on_progress:
                on_progress(sum(map(len, found)), len(source))
        self._known = torch.cat(found)

    def distances(self, images: Float[Tensor, "b 3 s s"]) -> Float[Tensor, " b"]:
        """Of each image to the nearest training image."""
        return self._both_views(images).amin(dim=(0, 2))

    def nearest(self, images: Float[Tensor, "b 3 s s"], count: int) -> Neighbours:
        """The `count` nearest training images of each image.

        Raises:
            ConfigError: If there are not so many.
        """
        if not 1 <= count <= len(self._known):
            raise ConfigError(f"{count} nearest of {len(self._known)} training images. Pass 1 to {len(self._known)}.")
        distances, views = self._both_views(images).min(dim=0)  # (B, M) each
        kept, places = distances.topk(count, largest=False)
        mirrored = views.gather(1, places)
        rows = [
            torch.stack([self._image(int(place), bool(view)) for place, view in zip(row, flips, strict=True)])
            for row, flips in zip(places, mirrored, strict=True)
        ]
        return Neighbours(distances=kept, places=places, images=torch.stack(rows))

    @torch.inference_mode()
    def _features(self, images: Tensor) -> Tensor:
        return F.normalize(self._network(quantise(images) * 2 - 1), dim=1)

    def _both_views(self, images: Tensor) -> Float[Tensor, "2 b m"]:
        return torch.stack([1 - self._features(view) @ self._known.T for view in (images, images.flip(-1))])

    def _image(self, place: int, mirrored: bool) -> Float[Tensor, "3 s s"]:
        image = load_image(self._source.read(place), name=self._source.key(place))
        found = to_tensor(centre_crop_resize(image, self._side))
        return found.flip(-1) if mirrored else found
