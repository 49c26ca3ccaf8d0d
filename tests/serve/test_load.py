"""The server under load, and when something fails beside other requests."""

import concurrent.futures
import threading
import time
from functools import partial

import pytest
import requests
import torch

pytest.importorskip("diffusers")
from diffusers.utils.remote_utils import remote_decode

from server_fakes import GOOD, SHAPE, image_of, metrics, post, running
from stepladder.serve.app import ServeConfig
from stepladder.serve.protocol import Limits


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
    assert all(answer in (400, 413) for answer in found[7::20])
    for kind in (0, 1):  # of one shape each
        good = [i for i in range(kind, 100, 2) if i % 20 != 7]
        wanted = image_of(tokenizer, torch.cat([latents[i] for i in good]))
        assert torch.allclose(torch.cat([found[i] for i in good]), wanted, atol=1e-5)
    assert counts['stepladder_requests_total{status="200"}'] == counts["stepladder_images_total"] == 95
    assert counts["stepladder_images_waiting"] == 0
