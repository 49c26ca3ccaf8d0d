"""The web application: POST /decode, GET /health, GET /metrics. Every error is JSON with one sentence."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from stepladder.encoders import Encoder, FrozenEncoder
from stepladder.encoders.scale import PipelineScale
from stepladder.errors import ConfigError, MissingDependencyError, OutputError, brief
from stepladder.files import reason
from stepladder.layouts import GridLayout
from stepladder.pipelines import decodable
from stepladder.serve.batching import Batcher, Tally
from stepladder.serve.protocol import Limits, answer, parse_request
from stepladder.serve.query import Query, RequestError
from stepladder.tokenizer import Tokenizer

try:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import JSONResponse, PlainTextResponse, Response
    from starlette.routing import Route
except ImportError as error:
    raise MissingDependencyError(
        f"Serving needs the packages starlette and uvicorn, which cannot be imported ({error}). Run pip install "
        "'stepladder[serve]'."
    ) from error

__all__ = ["ServeConfig", "application", "serve"]

_log = logging.getLogger(__name__)

Handler: TypeAlias = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeConfig:
    """Configuration of a server: model, limits, batches."""

    name: str
    """Of the model, as it is shown."""
    steps: int | None = None
    """Steps per stage; the model's own by default."""
    seed: int = 0
    """From which each image starts."""
    limits: Limits = field(default_factory=Limits)
    """Of one request."""
    batch: int = 8
    """Most images that are decoded together, in as many pixels as the largest image may have."""
    queue: int = 64
    """Most images that wait, and most requests that are worked on."""
    wait: float = 0.005
    """Seconds that an idle server waits for more images after the first."""
    patience: float = 30.0
    """Seconds in which the body of a request must arrive."""


def application(tokenizer: Tokenizer, config: ServeConfig) -> Starlette:
    """The application around a tokenizer.

    Raises:
        ConfigError: If its latents are no grid.
    """
    layout = tokenizer.layout
    if not isinstance(layout, GridLayout):
        raise ConfigError(
            f"Latents of {layout} cannot be served. Clients send grids (B, c, h, w). Use a model whose latent "
            "is a grid."
        )
    service = _Service(tokenizer, layout, config)
    routes = [
        Route("/decode", service.guarded(service.decode), methods=["POST"]),
        Route("/health", service.health),
        Route("/metrics", service.metrics),
    ]
    return Starlette(
        routes=routes, lifespan=service.lifespan, exception_handlers={404: service.no_page, 405: service.no_method}
    )


def serve(tokenizer: Tokenizer, config: ServeConfig, *, host: str, port: int, ready: Callable[[int], None]) -> None:
    """Serves until the process is asked to end; requests in progress are answered first.

    Args:
        tokenizer: Decodes, where it is.
        config: How.
        host: Address to listen at.
        port: 0 for any that is free.
        ready: Called with the port once requests are taken.

    Raises:
        ConfigError: If its latents are no grid.
        OutputError: If the address cannot be listened at.
    """
    app = application(tokenizer, config)
    # Without a configuration of its own: setting one up closes the log handlers of the whole process.
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, log_level="warning", access_log=False))
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family)
    except OSError as error:
        said = reason(error).partition(" (while")[0]  # Python repeats the address
        raise OutputError(f"Cannot listen at {host}:{port}: {said}. Pass another --host or --port.") from error
    with listening:
        ready(listening.getsockname()[1])
        server.run([listening])


class _Service:
    def __init__(self, tokenizer: Tokenizer, layout: GridLayout, config: ServeConfig) -> None:
        self._tokenizer = tokenizer
        self._layout = layout
        encoder: Encoder = tokenizer.encoder
        self._scale = encoder.pipeline_scale if isinstance(encoder, FrozenEncoder) else PipelineScale()
        self._config = config
        self._tally = Tally()
        self._working = 0
        cells = (config.limits.side // layout.stride) ** 2
        self._batcher = Batcher(
            self._decode_batch, batch=config.batch, cells=cells, queue=config.queue, wait=config.wait, tally=self._tally
        )

    @contextlib.asynccontextmanager
    async def lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        """The worker lives as long as the application."""
        task = asyncio.create_task(self._batcher.run())
        yield
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    def guarded(self, handler: Handler) -> Handler:
        """Bounds how many requests are worked on, counts the answers, and turns errors into sentences."""

        async def handle(request: Request) -> Response:
            self._working += 1
            try:
                if self._working > self._config.queue:
                    raise RequestError(
                        f"{self._config.queue} requests are worked on already, which is the most. Send the request "
                        "again in a second.",
                        503,
                    )
                response = await handler(request)
            except RequestError as error:
                response = _sentence(error)
            except Exception as error:  # a client gets a sentence, whatever it is; who runs the server gets it whole
                _log.exception("A request failed")
                said = f"The request failed: {brief(error)}. Tell who runs the server."
                response = _sentence(RequestError(said, 500))
            finally:
                self._working -= 1
            self._tally.count(response.status_code)
            return response

        return handle

    async def no_page(self, request: Request, _error: Exception) -> Response:
        """The answer to another address."""
        self._tally.count(404)
        said = f"There is nothing at {request.url.path}. Accepted: /decode, /health, /metrics."
        return _sentence(RequestError(said, 404))

    async def no_method(self, request: Request, _error: Exception) -> Response:
        """The answer to another method."""
        self._tally.count(405)
        said = f"{request.url.path} does not take {request.method}. Send POST to /decode, GET elsewhere."
        return _sentence(RequestError(said, 405))

    async def decode(self, request: Request) -> Response:
        """One request of `remote_decode`."""
        query = Query({name: request.query_params.getlist(name) for name in request.query_params})
        body = await self._body(request)
        accept = request.headers.get("accept", "")
        wanted = parse_request(
            query, body, accept=accept, layout=self._layout, scale=self._scale, limits=self._config.limits
        )
        images = await self._batcher.decode(wanted.latent)
        found = await asyncio.to_thread(answer, wanted, images)
        return Response(found.body, media_type=found.media_type, headers=found.headers)

    async def health(self, _request: Request) -> Response:
        """What is served, and whether there is room for another image."""
        limits = self._config.limits
        return JSONResponse(
            {
                "status": "ok" if self._batcher.waiting < self._config.queue else "busy",
                "model": self._config.name,
                "latent": str(self._layout),
                "device": str(self._tokenizer.device),
                "max_side": limits.side,
                "max_images": limits.images,
            }
        )

    async def metrics(self, _request: Request) -> Response:
        """Counters for Prometheus."""
        return PlainTextResponse(self._tally.text(self._batcher.waiting))

    async def _body(self, request: Request) -> bytes:
        """The body, or an error as soon as it is too long or too late."""
        most = self._config.limits.body(self._layout)
        parts, length = [], 0
        try:
            async with asyncio.timeout(self._config.patience):
                async for part in request.stream():
                    length += len(part)
                    if length > most:
                        raise RequestError(
                            f"The body has over {most:,} bytes, the most that is accepted here. Send fewer or smaller "
                            "latents.",
                            413,
                        )
                    parts.append(part)
        except TimeoutError:
            raise RequestError(
                f"The body did not arrive within {self._config.patience:g} seconds. Send it at once.", 408
            ) from None
        except ClientDisconnect:
            raise RequestError("The client went away. The body was cut off. Send the request again.") from None
        return b"".join(parts)

    def _decode_batch(self, latents: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 3 H W"]:
        seeds = [self._config.seed] * len(latents)
        with torch.inference_mode():
            latents = decodable(self._tokenizer, latents.to(self._tokenizer.device))
            images = self._tokenizer.decode(latents, seeds=seeds, steps=self._config.steps)
        return images.float().cpu()


def _sentence(error: RequestError) -> Response:
    headers = {"Retry-After": "1"} if error.status == 503 else {}
    return JSONResponse({"error": str(error)}, status_code=error.status, headers=headers)
