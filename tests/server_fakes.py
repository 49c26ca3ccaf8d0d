"""A server in a thread."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

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
