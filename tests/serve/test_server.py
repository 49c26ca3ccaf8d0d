"""The server, with the real client of diffusers, and with requests that are wrong."""

from functools import partial

import numpy as np
import pytest
import requests
import torch

pytest.importorskip("diffusers")
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.remote_utils import remote_decode

import pipeline_fakes as fakes
from server_fakes import GOOD, SHAPE, image_of, post, running
from stepladder.encoders import DiffusersEncoderConfig
from stepladder.encoders.scale import PipelineScale
from stepladder.pipelines import unit_latents
from stepladder.serve.app import ServeConfig

UNSAID = pytest.mark.filterwarnings("ignore:.do_scaling. is deprecated:FutureWarning")
"""The client warns where the factors are left to the server."""


@pytest.fixture
def decode(address):
    """The client of diffusers, without the scaling that it warns of."""
    return partial(remote_decode, f"{address}/decode", do_scaling=False)


def bytes_of(image):
    """(H, W, 3), 0 to 255."""
    return ((image[0] + 1) * 127.5).clamp(0, 255).round().to(torch.uint8).permute(1, 2, 0)


def test_the_client_gets_a_tensor(decode, tokenizer, latent):
    found = decode(tensor=latent, output_type="pt", return_type="pt")
    assert torch.allclose(found, image_of(tokenizer, latent), atol=1e-5)


def test_the_client_gets_bytes_of_pixels(decode, tokenizer, latent):
    found = decode(tensor=latent, output_type="pt", return_type="pt", partial_postprocess=True)
    assert found.shape == (1, 32, 48, 3)
    assert (found[0].int() - bytes_of(image_of(tokenizer, latent)).int()).abs().max() <= 1


@pytest.mark.parametrize(("image_format", "kind", "close"), [("png", "png", 0.5), ("jpg", "jpeg", 10)])
def test_the_client_gets_a_picture(decode, tokenizer, latent, image_format, kind, close):
    found = decode(tensor=latent, image_format=image_format)
    assert (found.format, found.size) == (kind, (48, 32))
    pixels = torch.from_numpy(np.array(found)).int()
    assert (pixels - bytes_of(image_of(tokenizer, latent)).int()).abs().float().mean() <= close


def test_the_client_gets_what_its_own_processor_makes_a_picture_of(decode, tokenizer, latent):
    expected = bytes_of(image_of(tokenizer, latent)).int()
    for words in ({"output_type": "pt"}, {"output_type": "pil"}):
        found = decode(tensor=latent, processor=VaeImageProcessor(), **words)
        found = found[0] if isinstance(found, list) else found
        assert (torch.from_numpy(np.array(found)).int() - expected).abs().max() <= 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_tensor_of_half_precision_goes_both_ways(decode, tokenizer, latent, dtype):
    found = decode(tensor=latent.to(dtype), output_type="pt", return_type="pt")
    assert found.dtype == dtype
    assert (found.float() - image_of(tokenizer, latent)).abs().mean() < 0.02


def test_a_model_in_half_precision_decodes_for_anybody(latent):
    half = fakes.tokenizer(16, 8).to(torch.bfloat16)
    with running(half, ServeConfig(name="tiny")) as address:
        found = remote_decode(f"{address}/decode", latent, do_scaling=False, output_type="pt", return_type="pt")
    assert found.dtype == torch.float32
    assert torch.allclose(found, image_of(half, latent).float(), atol=1e-2)


def test_several_images_go_in_one_request_and_each_is_as_if_alone(decode, tokenizer):
    latents = torch.randn(3, 16, 4, 4, generator=torch.Generator().manual_seed(1))
    found = decode(tensor=latents, output_type="pt", return_type="pt")
    assert torch.allclose(found, image_of(tokenizer, latents), atol=1e-5)


def test_packed_latents_of_flux_are_unpacked(decode, tokenizer, latent):
    from diffusers import FluxPipeline

    packed = FluxPipeline._pack_latents(latent, 1, 16, 4, 6)
    found = decode(tensor=packed, height=32, width=48, output_type="pt", return_type="pt")
    assert torch.allclose(found, image_of(tokenizer, latent), atol=1e-5)


@UNSAID
def test_factors_that_change_nothing_are_taken_and_others_refused(address, tokenizer, latent):
    decode = partial(remote_decode, f"{address}/decode", tensor=latent, output_type="pt", return_type="pt")
    expected = image_of(tokenizer, latent)
    assert torch.allclose(decode(scaling_factor=1.0, shift_factor=0.0), expected, atol=1e-5)
    assert torch.allclose(decode(), expected, atol=1e-5)
    with pytest.raises(RuntimeError, match=r"Parameter scaling_factor 0\.18215 is not that of the model, 1\. Leave it"):
        decode(scaling_factor=0.18215)


FLUX = PipelineScale(offset=[0.1159], factor=[1 / 0.3611])
FLUX2 = PipelineScale(offset=[0.1] * 64, factor=[0.5 + i / 64 for i in range(64)], packing=2)


def frozen(scale):
    encoder = DiffusersEncoderConfig(source="owner/name", stride=8, pipeline=scale)
    found = fakes.tokenizer(16, 8, encoder)
    found.bottleneck.scale.mean.fill_(0.2)
    found.bottleneck.scale.variance.fill_(4.0)
    return found


@pytest.mark.parametrize(
    ("scale", "words"),
    [
        (FLUX, {"scaling_factor": 0.3611, "shift_factor": 0.1159}),
        (FLUX, {}),
        (FLUX2, {}),
        (None, {"scaling_factor": 0.3611, "shift_factor": 0.1159}),
    ],
)
@UNSAID
def test_latents_of_a_pipeline_are_scaled_as_its_autoencoder_has_them(scale, words, latent):
    tokenizer = frozen(scale)
    expected = image_of(tokenizer, unit_latents(tokenizer, (scale or FLUX).raw_of_grid(latent)))
    with running(tokenizer, ServeConfig(name="tiny")) as address:
        found = remote_decode(f"{address}/decode", latent, output_type="pt", return_type="pt", **words)
        raw = remote_decode(f"{address}/decode", latent, do_scaling=False, output_type="pt", return_type="pt")
    assert torch.allclose(found, expected, atol=1e-4)
    assert torch.allclose(raw, image_of(tokenizer, unit_latents(tokenizer, latent)), atol=1e-4)


@pytest.mark.parametrize(
    ("scale", "words", "said"),
    [
        (FLUX, {"scaling_factor": 0.18215}, "Parameter scaling_factor 0.18215 is not that of the model, 0.3611."),
        (FLUX2, {"scaling_factor": 0.3611}, "Latents of the model are scaled channel by channel, and not by one"),
        (
            None,
            {},
            "The model does not know how pipelines scale its latents. Accepted: scaling_factor and shift_factor",
        ),
    ],
)
@UNSAID
def test_a_scale_that_is_not_that_of_the_model_is_refused(scale, words, said, latent):
    with running(frozen(scale), ServeConfig(name="tiny")) as address, pytest.raises(RuntimeError) as error:
        remote_decode(f"{address}/decode", latent, **words)
    assert said in str(error.value)


BAD = [
    ({}, b"", 400, "Parameter dtype is missing. Accepted: float32, float16, bfloat16. Pass one of them."),
    ({"dtype": "int8"}, b"", 400, "Parameter dtype 'int8' is unknown. Accepted: float32, float16, bfloat16."),
    ({"dtype": "float32"}, b"", 400, "Shape has 0 dimensions. Accepted: 4 (B, c, h, w), or 3 of packed latents."),
    ({"shape": [1, 16, -2, 2]}, GOOD, 400, "Parameter shape '-2' is no whole number from 1 on."),
    ({"shape": [1, 4, 4, 4]}, GOOD, 400, "have 4 channels, and the model decodes f8c16. Accepted: (B, 16, h, w)."),
    ({"shape": [1, 1, 16]}, GOOD, 400, "have 16 channels, and the model decodes f8c16. Accepted: (B, N, 64)."),
    ({"shape": [1, 1, 64]}, GOOD, 400, "Packed latents come without height and width. Both are needed."),
    (
        {"shape": [1, 1, 64], "height": 32, "width": 16},
        GOOD,
        400,
        "of 1 blocks do not cover 16 x 32, which has 2 blocks",
    ),
    ({}, GOOD[1:], 400, "Body of 255 bytes does not hold a tensor of shape [1, 16, 2, 2] in float32, which has 256."),
    ({}, b"\x00\x00\x80\x7f" * 64, 400, "The tensor holds NaN or infinity. Latents are finite numbers."),
    ({"output_type": "mp4"}, GOOD, 400, "Parameter output_type 'mp4' is unknown. Accepted: pil, pt."),
    ({"image_format": "gif"}, GOOD, 400, "Parameter image_format 'gif' is unknown. Accepted: png, jpg."),
    (
        {"output_type": "pt", "partial_postprocess": "so"},
        GOOD,
        400,
        "partial_postprocess 'so' is unknown. Accepted: True",
    ),
    (
        {"scaling_factor": "x"},
        GOOD,
        400,
        "Parameter scaling_factor 'x' is no finite number. Pass one, or leave it out.",
    ),
    ({"scaling_factor": "nan"}, GOOD, 400, "Parameter scaling_factor 'nan' is no finite number. Pass one"),
    ({"scaling_factor": 0}, GOOD, 400, "Parameter scaling_factor 0 is not above 0. Pass that of the autoencoder."),
    ({"shift_factor": 0.1159}, GOOD, 400, "Parameter shift_factor 0.1159 is not that of the model, 0"),
    ({"shape": [1, 16, 64, 2]}, GOOD, 413, "An image of 16 x 512 is too large. Accepted: sides up to 256."),
    ({"shape": [5, 16, 2, 2], "output_type": "pt"}, GOOD, 413, "5 images in one request. Accepted: up to 4."),
    ({"shape": [2, 16, 2, 2]}, GOOD * 2, 400, "2 images do not fit one file. Accepted: 1 with output_type pil."),
    ({}, bytes(4 * 16 * 32 * 32 * 4 + 1), 413, "The body has over 262,144 bytes, the most that is accepted here."),
]


@pytest.mark.parametrize(("query", "body", "status", "said"), BAD)
def test_a_bad_request_is_answered_with_a_sentence(address, query, body, status, said):
    found, sentence = post(address, body, **({**SHAPE, **query} if body else query))
    assert found == status
    assert said in sentence
    assert sentence.endswith(".")
    assert "\n" not in sentence


def test_a_wrong_page_or_method_is_answered_with_a_sentence(address):
    missing, wrong = requests.get(f"{address}/", timeout=30), requests.get(f"{address}/decode", timeout=30)
    assert (missing.status_code, wrong.status_code) == (404, 405)
    assert missing.json()["error"] == "There is nothing at /. Accepted: /decode, /health, /metrics."
    assert wrong.json()["error"] == "/decode does not take GET. Send POST to /decode, GET elsewhere."
    counted = requests.get(f"{address}/metrics", timeout=30).text
    assert all(f'stepladder_requests_total{{status="{status}"}} 1' in counted for status in (404, 405))


def test_health_says_what_is_served(address):
    assert requests.get(f"{address}/health", timeout=30).json() == {
        "status": "ok",
        "model": "tiny",
        "latent": "f8c16",
        "device": "cpu",
        "max_side": 256,
        "max_images": 4,
    }
