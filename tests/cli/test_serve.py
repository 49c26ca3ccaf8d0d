"""`stepladder serve`."""

import io
import logging
import os
import re
import signal
import socket
import subprocess
import sys

import pytest
import torch

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
requests = pytest.importorskip("requests")


@pytest.fixture
def served(monkeypatch):
    """What the command would serve, which it does not."""
    from stepladder.serve import app

    found = {}

    def serve(tokenizer, config, *, host, port, ready):
        ready(port or 4321)
        found.update(tokenizer=tokenizer, config=config, host=host, port=port)

    monkeypatch.setattr(app, "serve", serve)
    return found


def test_a_server_is_what_the_options_say(run, model, served):
    words = ("--host", "::1", "--port", 0, "--seed", 3, "--max-side", 512, "--batch", 2, "--queue", 5)
    words += ("--dtype", "bfloat16")
    result = run("serve", f"{model}@3", *words)
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == f"Serving {model}@3 (f8c16) on cpu at http://[::1]:4321/decode\n"
    config = served["config"]
    assert (config.name, config.steps, config.seed, config.batch, config.queue) == (f"{model}@3", 3, 3, 2, 5)
    assert (config.limits.side, config.limits.images) == (512, 2)
    assert served["tokenizer"].dtype == torch.bfloat16


def test_without_options_the_embedded_model_is_served_to_this_machine_alone(run, served):
    assert run("serve").exit_code == 0
    assert (served["config"].name, served["host"], served["port"]) == ("photo", "127.0.0.1", 8000)


def test_a_port_that_is_taken_is_refused_in_one_line(refused, model):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refused("serve", model, "--port", port, code=1)
    assert said == f"Cannot listen at 127.0.0.1:{port}: Address already in use. Pass another --host or --port."


def test_handlers_of_logs_stay_open(refused, model, monkeypatch):
    handler = logging.StreamHandler(io.StringIO())
    closed: list[bool] = []
    monkeypatch.setattr(handler, "close", lambda: closed.append(True))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        refused("serve", model, "--port", taken.getsockname()[1], code=1)
    assert not closed


def test_tokens_are_refused(refused, tmp_path):
    from stepladder.presets import tiny_tokens
    from stepladder.tokenizer import Tokenizer

    Tokenizer(tiny_tokens()).save_pretrained(tmp_path)
    assert "Latents of 6 tokens of 4 cannot be served. Clients send grids (B, c, h, w)." in refused(
        "serve", tmp_path, code=2
    )


def test_without_its_packages_the_command_names_the_extra(refused, model, monkeypatch):
    for name in ("stepladder.serve.app", "starlette", "starlette.applications"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    assert "Run pip install 'stepladder[serve]'." in refused("serve", model, code=1)


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_a_server_answers_until_it_is_asked_to_end(ending, tmp_path):
    command = [sys.executable, "-c", "from stepladder.cli import main; main()", "serve", "photo", "--port", "0"]
    with subprocess.Popen(command, cwd=tmp_path, env={**os.environ}, stderr=subprocess.PIPE, text=True) as process:
        line = process.stderr.readline()
        address = re.search(r"at (http://127\.0\.0\.1:\d+)/decode", line)[1]
        assert requests.get(f"{address}/health", timeout=60).json()["latent"] == "f8c16"
        query = {"shape": [1, 16, 2, 2], "dtype": "float32", "image_format": "png"}
        body = torch.zeros(1, 16, 2, 2).numpy().tobytes()
        assert requests.post(f"{address}/decode", params=query, data=body, timeout=60).content.startswith(b"\x89PNG")
        process.send_signal(ending)
        said = process.stderr.read()
    assert process.returncode == {signal.SIGTERM: 143, signal.SIGINT: 130}[ending]
    assert said == {signal.SIGTERM: "terminated\n", signal.SIGINT: "interrupted\n"}[ending]
