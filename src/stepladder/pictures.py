"""Pictures: image files on one side, PIL images of 8-bit RGB on the other.

A file is read as a viewer would show it: turned as its EXIF orientation says, colour profile applied (to sRGB),
transparency over white, the first frame of an animation, 16 bits rounded to 8. Its plain RGB pixels remain, and
nothing else that the file held. `images` goes on from here to tensors; this half needs no torch.

    array = byte / 127.5 - 1,    byte = round_half_even(clamp(127.5 (array + 1), 0, 255))
"""

import contextlib
import io
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError

from stepladder.errors import ImageError
from stepladder.files import PathLike, reason, write_atomically

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "RESIZE_FILTER",
    "Stream",
    "centre_crop_resize",
    "from_array",
    "grid",
    "image_files",
    "images_below",
    "is_image_name",
    "load_image",
    "save_png",
    "side_by_side",
    "to_array",
]

Stream: TypeAlias = IO[bytes] | io.BytesIO

MAX_PIXELS = 2**27
"""The most pixels that a file may declare (11585 x 11585): a few bytes can claim to be an image that fills memory."""

IMAGE_SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"}
)
"""Names that count as images when a folder is searched, in lower case; a file named by the user is always tried."""

RESIZE_FILTER = Image.Resampling.LANCZOS
"""The filter of the evaluation protocol; PIL widens it when it shrinks an image, which is its antialiasing."""

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF")
# A closed list: some of PIL's other readers start programs (EPS) or accept files without a signature (TGA).


def load_image(
    source: PathLike | bytes | Stream, *, name: str | None = None, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Reads an image as a viewer would show it.

    Args:
        source: A path, the bytes of a file, or a binary stream that can seek.
        name: What error messages call it; a path names itself.
        max_pixels: The most that it may have; one that has more is refused before its pixels are read.

    Returns:
        8-bit RGB without metadata.

    Raises:
        ImageError: If there is no such file, it cannot be read, is no image, is damaged, or has over `max_pixels`.
    """
    if isinstance(source, bytes):
        return _load(io.BytesIO(source), name or "from bytes", max_pixels)
    if not isinstance(source, str | os.PathLike):
        return _load(source, name or str(getattr(source, "name", "from a stream")), max_pixels)
    name = name or os.fspath(source)
    try:
        with Path(source).open("rb") as file:
            return _load(file, name, max_pixels)
    except FileNotFoundError:
        raise _unreadable(name, "there is no such file", "Check the path") from None
    except IsADirectoryError:
        raise _unreadable(name, "it is a folder", "Name an image file") from None
    except PermissionError:
        raise _unreadable(name, "permission denied", "Change the permissions of the file") from None
    except (OSError, ValueError) as error:
        raise _unreadable(name, reason(error), "Check the path") from error


def image_files(folder: PathLike, *, without: PathLike | None = None) -> list[Path]:
    """The files in `folder` and below whose suffix is that of an image, sorted by their paths.

    Hidden files and folders are left out. Symbolic links are followed, and each folder is searched once.

    Args:
        folder: Where to search.
        without: A folder below it that is left out.

    Raises:
        ImageError: If the folder holds none, or cannot be read.
    """
    try:
        found = sorted(images_below(folder, without=without))
    except OSError as error:
        raise _unreadable(str(error.filename), reason(error), "Check the folder") from error
    if not found:
        suffixes = " ".join(sorted(IMAGE_SUFFIXES))
        raise ImageError(f"Folder {os.fspath(folder)} holds no images ({suffixes}). Name a folder with images in it.")
    return found


def images_below(folder: PathLike, *, without: PathLike | None = None) -> Iterator[Path]:
    """The same files in any order, also none.

    Raises:
        OSError: If a folder cannot be listed.
    """
    skipped = None if without is None else os.path.realpath(without)
    seen: set[str] = set()

    def refuse(error: OSError) -> None:
        raise error

    for place, below, names in os.walk(folder, followlinks=True, onerror=refuse):
        real = os.path.realpath(place)
        if real in seen or (real == skipped and len(seen) > 0):
            below.clear()
            continue
        seen.add(real)
        below[:] = [name for name in below if not name.startswith(".")]
        files = (Path(place, name) for name in names if is_image_name(name))
        yield from (path for path in files if path.is_file())


def is_image_name(name: str) -> bool:
    """Whether a file of this name is taken for an image: a known suffix, and not hidden (`.x.png`, `._x.png`)."""
    path = PurePosixPath(name)
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def to_array(image: Image.Image) -> NDArray[np.float32]:
    """8-bit RGB to float32 (3, H, W) in [-1, 1].

    Raises:
        ImageError: If the image is of another mode.
    """
    if image.mode != "RGB":
        raise ImageError(f"Image mode {image.mode} is not RGB. Read the file with load_image, which gives RGB.")
    pixels = np.asarray(image).transpose(2, 0, 1).astype(np.float32, order="C")
    pixels /= np.float32(127.5)
    pixels -= np.float32(1)
    return pixels


def from_array(image: NDArray[np.float32]) -> Image.Image:
    """An image (3, H, W) in [-1, 1] to 8-bit RGB.

    Raises:
        ImageError: If it holds NaN, which would turn black.
    """
    if np.isnan(image).any():
        raise ImageError("The image holds NaN. Pixels are numbers in [-1, 1]. Use a model whose weights are sound.")
    pixels = image + np.float32(1)
    pixels *= np.float32(127.5)  # in place: of a large image, each copy takes hundreds of megabytes
    np.rint(pixels.clip(0, 255, out=pixels), out=pixels)
    return Image.fromarray(pixels.transpose(1, 2, 0).astype(np.uint8, order="C"))


def centre_crop_resize(image: Image.Image, size: int) -> Image.Image:
    """The evaluation protocol: the central square of the short side, resized to `size` with `RESIZE_FILTER`."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side)).resize((size, size), RESIZE_FILTER)


def side_by_side(images: Sequence[Image.Image], *, gap: int = 8) -> Image.Image:
    """One row, left to right, white between."""
    return grid(images, columns=len(images), gap=gap)


def grid(images: Sequence[Image.Image], *, columns: int, gap: int = 8) -> Image.Image:
    """Rows of `columns` images on white, each at the top left of a cell that the largest of them fills."""
    assert images and columns > 0, "a grid has at least one image and one column"
    rows = -(-len(images) // columns)
    width, height = max(image.width for image in images), max(image.height for image in images)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for index, image in enumerate(images):
        sheet.paste(image, (index % columns * (width + gap), index // columns * (height + gap)))
    return sheet


def save_png(image: Image.Image, path: PathLike, *, force: bool = False) -> None:
    """Writes a PNG, whole or not at all.

    Raises:
        OutputError: If `path` exists and `force` is not set, or it cannot be written.
    """
    write_atomically(Path(path), lambda temporary: image.save(temporary, format="PNG"), force=force)


def _load(file: Stream, name: str, max_pixels: int) -> Image.Image:
    if not file.seekable():
        file = io.BytesIO(file.read())
    if not file.seek(0, io.SEEK_END):
        raise _unreadable(name, "it is empty (0 bytes)", "Fetch the file again")
    file.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL warns of odd metadata, and of sizes that are checked here
        with _explained(name, max_pixels), Image.open(file, formats=_formats()) as image:
            if image.width * image.height > max_pixels:
                raise Image.DecompressionBombError(f"{image.width} x {image.height}")
            image.load()
            return _plain_rgb(image)


def _formats() -> list[str]:
    Image.init()
    return [name for name in _FORMATS if name in Image.OPEN]


@contextlib.contextmanager
def _explained(name: str, max_pixels: int) -> Iterator[None]:
    """Turns whatever PIL raises on damaged data into an `ImageError`."""
    try:
        yield
    except UnidentifiedImageError:
        formats = ", ".join(_FORMATS)
        raise _unreadable(name, f"it is no image of a format that is read ({formats})", "Convert it") from None
    except Image.DecompressionBombError as error:
        why = f"it claims too many pixels ({reason(error)}); at most {max_pixels} are read"
        raise _unreadable(name, why, "Make it smaller") from None
    except MemoryError:
        raise _unreadable(name, "there is not enough memory for it", "Make it smaller") from None
    except Exception as error:  # its readers fail in many ways: OSError, ValueError, SyntaxError, struct.error ...
        raise _unreadable(name, f"its data is damaged or cut off ({reason(error)})", "Fetch the file again") from error


def _plain_rgb(image: Image.Image) -> Image.Image:
    with contextlib.suppress(Exception):  # damaged EXIF is no reason to refuse the pixels
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:  # else it would only copy them
            image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        image = _eight_bits(image)
    if image.has_transparency_data or image.mode == "P":
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    image = _to_srgb(image)
    if image.mode == "RGBA":
        paper = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(paper, image)
    plain = image.convert("RGB")
    plain.info = {}
    return plain


def _eight_bits(image: Image.Image) -> Image.Image:
    """Grey of 16 bits, or of floats in [0, 1] or [0, 255], to 8 bits."""
    values = np.nan_to_num(np.asarray(image, dtype=np.float32))
    if image.mode != "F":
        values /= 257  # 65535 = 255 x 257
    elif values.max() <= 1:
        values *= 255
    return Image.fromarray(values.clip(0, 255).round().astype(np.uint8))


def _to_srgb(image: Image.Image) -> Image.Image:
    """Applies an embedded colour profile; without one, or with a damaged one, the values count as sRGB."""
    embedded = image.info.get("icc_profile")
    if not embedded:
        return image
    with contextlib.suppress(ImageCms.PyCMSError, OSError, ValueError, TypeError):
        profile = ImageCms.ImageCmsProfile(io.BytesIO(embedded))
        if "sRGB" in ImageCms.getProfileDescription(profile):
            return image
        mode = "RGBA" if image.mode == "RGBA" else "RGB"
        converted = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode=mode)
        assert converted is not None, "it is None only when it converts in place"
        return converted
    return image


def _unreadable(name: str, why: str, advice: str) -> ImageError:
    return ImageError(f"Cannot read image {name}: {why}. {advice}.")
