"""The server, with the real client of diffusers and under load."""

import concurrent.futures
import re
import threading
import time
from functools import partial

import numpy as np
import pytest
import requests
import torch

pytest.importorskip("diffusers")
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.remote_utils import remote_decode

import pipeline_fakes as fakes
from server_fakes import running
from stepladder.encoders import DiffusersEncoderConfig
from stepladder.encoders.scale import PipelineScale
from stepladder.pipelines import unit_latents
from stepladder.serve.app import ServeConfig
from stepladder.serve.protocol import Limits

UNSAID = pytest.mark.filterwarnings("ignore:.do_scaling. is deprecated:FutureWarning")
"""The client warns where the factors are left to the server."""


@pytest.fixture
def latent():
    return torch.randn(1, 16, 4, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def decode(address):
    """The client of diffusers, without the scaling that it warns of."""
    return partial(remote_decode, f"{address}/decode", do_scaling=False)


def image_of(tokenizer, latent):
    return tokenizer.decode(latent, seeds=[0] * len(latent))


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


def post(address, body=b"", **query):
    response = requests.post(f"{address}/decode", params=query, data=body, timeout=30)
    return response.status_code, response.json()["error"]


SHAPE = {"shape": [1, 16, 2, 2], "dtype": "float32"}
GOOD = bytes(4 * 64)


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


def test_health_says_what_is_served(address):
    assert requests.get(f"{address}/health", timeout=30).json() == {
        "status": "ok",
        "model": "tiny",
        "latent": "f8c16",
        "device": "cpu",
        "max_side": 256,
        "max_images": 4,
    }


def metrics(address):
    text = requests.get(f"{address}/metrics", timeout=30).text
    return {name: float(value) for name, value in re.findall(r"^(stepladder_\S+) ([\d.e-]+)$", text, re.MULTILINE)}


def test_a_body_that_does_not_come_is_given_up(tokenizer):
    import socket

    with running(tokenizer, ServeConfig(name="tiny", patience=0.2)) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(b"POST /decode?dtype=float32 HTTP/1.1\r\nHost: x\r\nContent-Length: 256\r\n\r\nabc")
            answer = ""
            while not answer.endswith("}"):
                answer += connection.recv(4096).decode()
        assert answer.startswith("HTTP/1.1 408")
        assert "The body did not arrive within 0.2 seconds. Send it at once." in answer


@pytest.fixture
def slow(tokenizer, monkeypatch):
    """The tokenizer, which decodes only once it is let."""
    gate, decode = threading.Event(), tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda *args, **words: gate.wait(30) and decode(*args, **words))
    return gate


def test_a_full_queue_says_so_and_is_empty_again_later(tokenizer, slow, latent):
    send = lambda address: requests.post(  # noqa: E731
        f"{address}/decode",
        params={"shape": list(latent.shape), "dtype": "float32", "output_type": "pt"},
        data=latent.numpy().tobytes(),
        timeout=60,
    )
    with running(tokenizer, ServeConfig(name="tiny", batch=1, queue=3)) as address:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            sent = [pool.submit(send, address) for _ in range(8)]
            concurrent.futures.wait(sent, timeout=30, return_when=concurrent.futures.FIRST_COMPLETED)
            while sum(each.done() for each in sent) < 5:
                time.sleep(0.01)
            refused = [each.result() for each in sent if each.done()]
            slow.set()
        assert [each.status_code for each in refused] == [503] * 5
        assert refused[0].headers["Retry-After"] == "1"
        assert "requests are worked on already, which is the most" in refused[0].json()["error"]
        assert sorted(each.result().status_code for each in sent) == [200] * 3 + [503] * 5
        assert send(address).status_code == 200


def test_what_arrives_together_is_decoded_together(tokenizer, slow):
    latents = torch.randn(6, 16, 2, 2, generator=torch.Generator().manual_seed(2))
    with running(tokenizer, ServeConfig(name="tiny", batch=4)) as address:
        decode = partial(remote_decode, f"{address}/decode", do_scaling=False, output_type="pt", return_type="pt")
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            sent = [pool.submit(decode, tensor=latent[None]) for latent in latents]
            while not metrics(address).get("stepladder_images_waiting"):
                time.sleep(0.01)
            time.sleep(0.2)
            slow.set()
            found = torch.cat([each.result() for each in sent])
        assert torch.allclose(found, image_of(tokenizer, latents), atol=1e-5)
        counts = metrics(address)
        assert counts["stepladder_images_total"] == 6
        assert counts["stepladder_batches_total"] < 6
        assert counts['stepladder_requests_total{status="200"}'] == 6


def test_an_image_that_cannot_be_decoded_fails_alone(tokenizer, monkeypatch):
    decode = tokenizer.decode

    def fussy(latents, **words):
        if (latents == 7).any():
            raise RuntimeError("can't allocate\nmemory")
        return decode(latents, **words)

    monkeypatch.setattr(tokenizer, "decode", fussy)
    with running(tokenizer, ServeConfig(name="tiny")) as address:
        body = torch.full((2, 16, 2, 2), 7.0).numpy().tobytes()
        status, said = post(address, body, **{**SHAPE, "shape": [2, 16, 2, 2], "output_type": "pt"})
        assert status == 500
        assert said.startswith("The image could not be decoded: can't allocate memory. Ask for a smaller one")
        good = remote_decode(f"{address}/decode", torch.zeros(1, 16, 2, 2), do_scaling=False)
        assert good.size == (16, 16)


def test_what_goes_wrong_afterwards_is_a_sentence_too(tokenizer, monkeypatch, caplog):
    monkeypatch.setattr(tokenizer, "decode", lambda z, **words: torch.full((len(z), 3, 16, 16), float("nan")))
    with running(tokenizer, ServeConfig(name="tiny")) as address:
        status, said = post(address, GOOD, **SHAPE)
    assert status == 500
    assert said.startswith("The request failed: The image holds NaN. Pixels are numbers in [-1, 1].")
    assert "Traceback" in caplog.text


def test_a_hundred_requests_eight_at_a_time_with_hostile_ones_between_lose_nothing(tokenizer):
    drawn = torch.Generator().manual_seed(5)
    latents = [torch.randn(1, 16, 2 + i % 2, 2, generator=drawn) for i in range(100)]
    hostile = [
        {"query": {"shape": [1, 16, 10**8, 10**8], "dtype": "float32"}, "body": b"x" * 1000},
        {"query": {"shape": ["[" * 5000], "dtype": "float32"}, "body": b""},
        {"query": {**SHAPE, "scaling_factor": "nan"}, "body": GOOD},
        {"query": SHAPE, "body": b"\xff" * 256},
        {"query": SHAPE, "body": b"x" * 2**22},
    ]

    def one(i):
        if i % 20 == 7:
            attack = hostile[i // 20]
            return requests.post(
                f"{address}/decode", params=attack["query"], data=attack["body"], timeout=60
            ).status_code
        return remote_decode(f"{address}/decode", latents[i], do_scaling=False, output_type="pt", return_type="pt")

    limits = Limits(side=256, images=4)
    with running(tokenizer, ServeConfig(name="tiny", limits=limits)) as address:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            found = list(pool.map(one, range(100)))
        counts = metrics(address)
    for i, answer in enumerate(found):
        if i % 20 == 7:
            assert answer in (400, 413)
        else:
            assert torch.allclose(answer, image_of(tokenizer, latents[i]), atol=1e-5)
    assert counts['stepladder_requests_total{status="200"}'] == counts["stepladder_images_total"] == 95
    assert counts["stepladder_images_waiting"] == 0
