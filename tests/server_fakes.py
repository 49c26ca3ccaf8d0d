"""A server in a thread, and what tests ask of it."""

import contextlib
import re
import socket
import threading
import time
from collections.abc import Iterator

import requests
import uvicorn

from stepladder.serve.app import ServeConfig, application
from stepladder.tokenizer import Tokenizer


@contextlib.contextmanager
def running(tokenizer: Tokenizer, config: ServeConfig) -> Iterator[str]:
    """Serves at a free port of this machine, whose address it gives."""
    server = uvicorn.Server(uvicorn.Config(application(tokenizer, config), log_level="warning"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10)


SHAPE = {"shape": [1, 16, 2, 2], "dtype": "float32"}
GOOD = bytes(4 * 64)


def image_of(tokenizer, latent):
    return tokenizer.decode(latent, seeds=[0] * len(latent))


def post(address, body=b"", **query):
    response = requests.post(f"{address}/decode", params=query, data=body, timeout=30)
    return response.status_code, response.json()["error"]


def metrics(address):
    text = requests.get(f"{address}/metrics", timeout=30).text
    return {name: float(value) for name, value in re.findall(r"^(stepladder_\S+) ([\d.e-]+)$", text, re.MULTILINE)}
