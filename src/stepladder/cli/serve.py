"""`stepladder serve`: a decoder over HTTP."""

from typing import Annotated

import typer

from stepladder.cli._models import load_model
from stepladder.cli._options import DEFAULT_MODEL, Device, Dtype, Precision, Seed
from stepladder.cli._output import say

__all__ = ["serve"]

Name = Annotated[
    str, typer.Argument(metavar="MODEL@N", help="An embedded name, a folder or a hub id; @N sets N steps per stage.")
]


def serve(
    model: Name = DEFAULT_MODEL,
    host: Annotated[str, typer.Option(metavar="H", help="Address to listen at; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, metavar="P", help="Port; 0 for any that is free.")] = 8000,
    device: Device = "auto",
    dtype: Dtype = Precision.float32,
    seed: Seed = 0,
    max_side: Annotated[
        int, typer.Option(min=1, max=2**14, metavar="N", help="Longest side of an image that is decoded.")
    ] = 2048,
    batch: Annotated[
        int, typer.Option(min=1, max=1024, metavar="B", help="Most images that are decoded together.")
    ] = 8,
    queue: Annotated[int, typer.Option(min=1, max=65536, metavar="Q", help="Most images that wait.")] = 64,
) -> None:
    """Decode latents over HTTP.

    Answers `remote_decode` of diffusers at /decode, with /health and /metrics beside it, until it is stopped.
    """
    from stepladder.serve.app import ServeConfig
    from stepladder.serve.app import serve as run
    from stepladder.serve.protocol import Limits

    tokenizer, spec = load_model(model, device, dtype=dtype)
    config = ServeConfig(
        name=str(spec),
        steps=spec.steps,
        seed=seed,
        limits=Limits(side=max_side, images=batch),
        batch=batch,
        queue=queue,
    )

    def ready(found: int) -> None:
        shown = f"[{host}]" if ":" in host else host
        say(f"Serving {spec} ({tokenizer.layout}) on {tokenizer.device} at http://{shown}:{found}/decode")

    run(tokenizer, config, host=host, port=port, ready=ready)
