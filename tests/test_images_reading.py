import errno
import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from stepladder.errors import ImageError
from stepladder.images import (
    MAX_PIXELS,
    load_image,
)


def encoded(image, format="PNG", **options):
    file = io.BytesIO()
    image.save(file, format=format, **options)
    return file.getvalue()


def pixels(image):
    assert image.mode == "RGB"
    return np.asarray(image).tolist()


def photo(height=24, width=32):
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([x * 7, y * 9, x + y], axis=-1).astype(np.uint8))


# ---------------------------------------------------------------------------------------------------- what is accepted


def test_a_path_bytes_and_a_stream_read_the_same(tmp_path):
    path = tmp_path / "a.png"
    photo().save(path)
    with path.open("rb") as stream:
        images = [load_image(path), load_image(str(path)), load_image(path.read_bytes()), load_image(stream)]
    assert all(pixels(image) == pixels(photo()) for image in images)


def test_a_stream_that_cannot_seek_is_read():
    reader, writer = os.pipe()
    os.write(writer, encoded(photo(4, 4)))
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        assert load_image(pipe).size == (4, 4)


@pytest.mark.parametrize(("format", "options"), [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("PPM", {})])
def test_lossless_formats_keep_every_byte(format, options):
    assert pixels(load_image(encoded(photo(), format, **options))) == pixels(photo())


def test_webp_keeps_every_byte_when_lossless():
    assert pixels(load_image(encoded(photo(), "WEBP", lossless=True))) == pixels(photo())


def test_sixteen_bit_grey_is_rounded_to_eight():
    values = np.array([[0, 257, 128 * 257 + 100, 65535]], dtype=np.uint16)
    for format in ("PNG", "TIFF"):
        assert pixels(load_image(encoded(Image.fromarray(values), format))) == [[[v] * 3 for v in (0, 1, 128, 255)]]


def test_sixteen_bit_colour_is_read():
    row = b"\x00" + struct.pack(">6H", 65535, 0, 32896, 257, 514, 771)
    assert pixels(load_image(raw_png(2, 1, depth=16, colour=2, rows=row))) == [[[255, 0, 128], [1, 2, 3]]]


def test_a_sixteen_bit_pgm_is_read():
    assert pixels(load_image(b"P5 2 1 65535\n\x00\x00\xff\xff")) == [[[0] * 3, [255] * 3]]


def test_floats_are_read_in_both_usual_ranges():
    for scale in (1.0, 255.0):
        values = np.array([[0.0, 0.2, 1.0, np.nan]], dtype=np.float32) * scale
        assert pixels(load_image(encoded(Image.fromarray(values), "TIFF"))) == [[[v] * 3 for v in (0, 51, 255, 0)]]


def test_one_bit_and_grey_become_rgb():
    assert pixels(load_image(encoded(Image.new("1", (1, 1), 1)))) == [[[255] * 3]]
    assert pixels(load_image(encoded(Image.new("L", (1, 1), 77)))) == [[[77] * 3]]


def test_transparency_is_laid_over_white():
    assert pixels(load_image(encoded(Image.new("RGBA", (1, 1), (255, 0, 0, 0))))) == [[[255, 255, 255]]]
    assert pixels(load_image(encoded(Image.new("RGBA", (1, 1), (255, 0, 0, 128))))) == [[[255, 127, 127]]]
    assert pixels(load_image(encoded(Image.new("LA", (1, 1), (0, 51))))) == [[[204, 204, 204]]]


def test_a_palette_keeps_its_colours_and_its_transparent_entry_is_white():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    assert pixels(load_image(encoded(image))) == [[[10, 20, 30], [40, 50, 60]]]
    assert pixels(load_image(encoded(image, transparency=1))) == [[[10, 20, 30], [255, 255, 255]]]
    assert pixels(load_image(encoded(image, transparency=bytes([255, 0])))) == [[[10, 20, 30], [255, 255, 255]]]


def test_a_transparent_colour_without_alpha_is_white():
    image = Image.new("RGB", (2, 1), (1, 2, 3))
    image.putpixel((1, 0), (9, 9, 9))
    assert pixels(load_image(encoded(image, transparency=(9, 9, 9)))) == [[[1, 2, 3], [255, 255, 255]]]


def test_cmyk_becomes_rgb():
    image = load_image(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100))
    assert np.abs(np.asarray(image).astype(int) - [255, 0, 0]).max() <= 2


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    for format in ("GIF", "PNG"):
        data = encoded(frames[0], format, save_all=True, append_images=frames[1:])
        assert pixels(load_image(data))[0][0] == [255, 0, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_and_forgotten(orientation):
    turned = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = photo(3, 5) if turned is None else photo(3, 5).transpose(turned)
    exif = Image.Exif()
    exif[0x0112] = orientation
    for format in ("PNG", "TIFF"):
        image = load_image(encoded(stored, format, exif=exif))
        assert pixels(image) == pixels(photo(3, 5))
        assert not image.info
        assert not image.getexif()


def test_damaged_exif_does_not_refuse_the_image():
    data = encoded(photo(), "JPEG", exif=b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\xff" + b"\xff" * 9)
    assert load_image(data).size == photo().size


def test_a_colour_profile_is_applied():
    swapped = swapped_red_and_green()
    image = load_image(encoded(Image.new("RGB", (1, 1), (255, 0, 0)), icc_profile=swapped))
    assert np.abs(np.asarray(image).astype(int) - [0, 255, 0]).max() <= 3
    clear = load_image(encoded(Image.new("RGBA", (1, 1), (255, 0, 0, 0)), icc_profile=swapped))
    assert pixels(clear) == [[[255, 255, 255]]]


def test_an_srgb_profile_changes_nothing_and_a_damaged_one_is_ignored():
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for profile in (srgb, b"nonsense", srgb[:200]):
        assert pixels(load_image(encoded(photo(), icc_profile=profile))) == pixels(photo())


@pytest.mark.parametrize("size", [(1, 1), (37, 4001), (4001, 37)])
def test_odd_sizes_are_read(size):
    assert load_image(encoded(Image.new("RGB", size))).size == size


# ----------------------------------------------------------------------------------------------------- what is refused


def refusal(source, name=None):
    with pytest.raises(ImageError) as caught:
        load_image(source, name=name)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith("Cannot read image ")
    return text


def test_a_missing_file_a_folder_and_an_odd_path_are_refused(tmp_path):
    assert (
        refusal(tmp_path / "no.png") == f"Cannot read image {tmp_path}/no.png: there is no such file. Check the path."
    )
    assert "it is a folder. Name an image file." in refusal(tmp_path)
    assert "Not a directory" in refusal(Path(__file__) / "a.png")
    assert "embedded null" in refusal("a\0b.png")
    assert "File name too long" in refusal("a" * 300)


def test_a_file_without_permission_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    photo().save(path)

    def denied(*args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)  # the tests may run as root, whom no permission stops
    assert "permission denied. Change the permissions of the file." in refusal(path)


def test_zero_bytes_are_refused(tmp_path):
    (tmp_path / "a.png").touch()
    assert "it is empty (0 bytes). Fetch the file again." in refusal(tmp_path / "a.png")
    assert "it is empty" in refusal(b"")


def test_what_is_no_image_is_refused_with_the_formats_that_are_read():
    text = refusal(b"hello", name="notes.txt")
    assert text.startswith("Cannot read image notes.txt: it is no image of a format that is read (PNG, JPEG, WEBP,")
    assert text.endswith("Convert it.")


def test_formats_that_start_programs_are_not_read():
    assert "no image of a format that is read" in refusal(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n")


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "PPM", "WEBP"])
def test_a_file_cut_off_anywhere_is_refused(format):
    data = encoded(photo(), format)
    for kept in (1, 10, 40, len(data) // 2, len(data) * 3 // 4):
        text = refusal(data[:kept], name="cut")
        assert "damaged or cut off" in text or "no image of a format" in text


def test_damaged_data_is_refused():
    data = bytearray(encoded(photo()))
    data[len(data) // 2] ^= 0xFF
    assert "damaged or cut off" in refusal(bytes(data))


@pytest.mark.parametrize("side", [11586, 20_000, 2**31 - 1])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(side):
    text = refusal(raw_png(side, side, depth=8, colour=2, rows=b""), name="bomb.png")
    assert "claims too many pixels" in text
    assert str(MAX_PIXELS) in text


def test_an_image_just_below_the_limit_is_not_called_a_bomb():
    assert "damaged or cut off" in refusal(raw_png(MAX_PIXELS // 1024, 1024, depth=8, colour=2, rows=b""))


def test_a_text_bomb_in_a_png_is_refused():
    packed = b"note\0\0" + zlib.compress(b"a" * 3_000_000)
    assert "damaged or cut off" in refusal(raw_png(1, 1, depth=8, colour=2, rows=b"\0abc", extra=[(b"zTXt", packed)]))


# ------------------------------------------------------------------------------------------------------------- helpers


def raw_png(width, height, *, depth, colour, rows, extra=()):
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    packed = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def swapped_red_and_green():
    """An sRGB profile in which red and green have changed places, under another name."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profile = profile.replace(b"rXYZ", b"????").replace(b"gXYZ", b"rXYZ").replace(b"????", b"gXYZ")
    return profile.replace(b"sRGB", b"swap").replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))
