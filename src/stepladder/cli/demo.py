"""`stepladder demo`: a page in the browser to try models on."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stepladder.cli._models import load_model, open_encoders
from stepladder.cli._options import DEFAULT_MODEL, Device, Encoder
from stepladder.cli._output import print_text, say
from stepladder.errors import ConfigError

if TYPE_CHECKING:
    from stepladder.demo.trial import Offered

__all__ = ["demo"]

Models = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="MODEL@N",
        help="Models that visitors may choose; by default the embedded one.",
        show_default=False,
    ),
]
Host = Annotated[
    str,
    typer.Option("--host", metavar="ADDRESS", help="Address to listen on; 0.0.0.0 lets other machines in."),
]
Port = Annotated[
    int | None,
    typer.Option("--port", min=1, max=65535, metavar="N", help="By default the first free one from 7860 on."),
]
Megapixels = Annotated[
    float, typer.Option("--max-megapixels", metavar="N", help="Larger images are refused, before they are read.")
]
AtOnce = Annotated[
    int, typer.Option("--at-once", min=1, max=64, metavar="N", help="Visitors that are served at once; others wait.")
]
Open = Annotated[bool, typer.Option("--open", help="Open the page in the browser of this machine.")]

_MOST_MEGAPIXELS = 2**27 / 1e6
"""Largest image that is read; equal to that of `stepladder.images`, which takes long to import."""


def demo(
    models: Models = None,
    host: Host = "127.0.0.1",
    port: Port = None,
    max_megapixels: Megapixels = 4.2,
    at_once: AtOnce = 2,
    encoder: Encoder = None,
    device: Device = "auto",
    open_: Open = False,
) -> None:
    """Try models on a page in the browser.

    Drop an image or choose an example: the stages appear as they are decoded, coarse first, with an error map, times
    and metrics, several models side by side. Prints the link of the page, and serves it until Ctrl-C.
    """
    if not 0 < max_megapixels <= _MOST_MEGAPIXELS:
        raise ConfigError(
            f"--max-megapixels {max_megapixels:g} is not above 0 and at most {_MOST_MEGAPIXELS:.0f}. "
            "Usual values: 1 to 16."
        )
    with tempfile.TemporaryDirectory(prefix="stepladder-page-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder  # before Gradio is imported, which makes a folder there
        from stepladder.demo.page import serve
        from stepladder.demo.photographs import photographs
        from stepladder.demo.settings import Limits

        def ready(link: str) -> None:
            print_text(link)
            say("The page is there until Ctrl-C.")
            if open_:
                typer.launch(link)

        limits = Limits(pixels=int(max_megapixels * 1e6), at_once=at_once)
        offered = _offered(models or [DEFAULT_MODEL], device, encoder)
        serve(offered, photographs(), limits, folder=Path(folder), host=host, port=port, on_ready=ready)


def _offered(models: Sequence[str], device: str, encoder: str | None) -> "list[Offered]":
    """The models by the names that the page gives them, ready for the first visitor."""
    from stepladder.demo.trial import Offered

    offered: dict[str, Offered] = {}
    for text in models:
        tokenizer, spec = load_model(text, device)
        name = spec.short
        if name in offered:
            raise ConfigError(f"Two models are called {name}. Names on the page differ. Leave one of them out.")
        offered[name] = Offered(name=name, tokenizer=tokenizer, steps=spec.steps)
    open_encoders([(name, model.tokenizer) for name, model in offered.items()], encoder)
    for model in offered.values():
        model.warm_up()
    return list(offered.values())
