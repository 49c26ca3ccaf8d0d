"""`stepladder demo` refuses what it cannot serve before it serves anything; the page itself is tested in a browser."""

import importlib.util
import socket
import sys
from types import SimpleNamespace

import pytest


@pytest.mark.parametrize("value", ["0", "-1", "1e9", "nan"])
def test_a_limit_that_is_none_is_refused(refused, value):
    said = refused("demo", "--max-megapixels", value, code=2)
    assert "is not above 0 and at most 134. Usual values: 1 to 16." in said


def test_a_model_that_is_not_there_is_named(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "stepladder.demo.page", SimpleNamespace(serve=None))
    assert "Unknown model 'nothing'" in refused("demo", "nothing")


def test_two_models_of_one_name_are_refused(refused, model, monkeypatch):
    monkeypatch.setitem(sys.modules, "stepladder.demo.page", SimpleNamespace(serve=None))
    assert refused("demo", model, model, code=2) == (
        "Two models are called tiny. Names on the page differ. Leave one of them out."
    )


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="gradio is not installed")
def test_a_port_that_is_taken_is_one_line(python, model):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = python("from stepladder.cli import main; main()", "demo", model, "--port", port)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: The page cannot listen on 127.0.0.1:{port} (")
    assert done.stderr.endswith("Pass another --port, or leave --host and --port out.\n")
    assert done.stderr.count("\n") == 1


def test_without_gradio_the_extra_is_named(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "stepladder.demo.page", raising=False)
    assert "pip install 'stepladder[page]'" in refused("demo")
