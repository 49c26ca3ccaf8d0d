"""`stepladder card`: the card of a model, with what was measured."""

from pathlib import Path
from typing import Annotated

import typer

from stepladder.cli._files import check_outputs
from stepladder.cli._options import Force
from stepladder.cli._output import print_text, say, shown
from stepladder.errors import ConfigError

__all__ = ["card"]

Name = Annotated[
    str, typer.Argument(metavar="MODEL", help="An embedded name, a folder or a hub id.", show_default=False)
]
Results = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE",
        help="What `stepladder evaluate DATA MODEL --json` printed, or a record of it; may be given several times.",
        show_default=False,
    ),
]
License = Annotated[
    str | None,
    typer.Option(metavar="ID", help="Licence of the weights as the hub calls it, for example apache-2.0."),
]
As = Annotated[
    str | None,
    typer.Option("--as", metavar="NAME", help="What users load it by, for example owner/name; MODEL without it."),
]
Out = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Where to write it, for example MODEL/README.md.", show_default=False),
]


def card(
    model: Name,
    results: Results = None,
    license: License = None,
    known_as: As = None,
    out: Out = None,
    force: Force = False,
) -> None:
    """Write the card of a model: what it is, how to use it, what was measured.

    Without --out it is printed. The header is in YAML, as the hub reads it.
    """
    from stepladder.files import parse_json, reason, write_atomically
    from stepladder.measure.measured import card_results, card_table
    from stepladder.models import parse_model_spec
    from stepladder.tokenizer import Tokenizer

    name = parse_model_spec(model).name
    if out:
        check_outputs(results or [], [out], force=force)
    tables, found = [], []
    for path in results or []:
        try:
            report = parse_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"Cannot read {shown(path)}: {reason(error)}. Results are JSON. Write them with stepladder evaluate "
                "--json."
            ) from error
        if isinstance(report, dict) and isinstance(report.get("report"), dict):
            report = report["report"]  # of a file of benchmarks/results
        tables.append(card_table(report, where=shown(path)))
        found += card_results(report, name, where=shown(path))
    made = Tokenizer.from_pretrained(name).generate_model_card(
        name=known_as or name, license=license, measured="\n\n".join(tables), results=found
    )
    if out is None:
        print_text(str(made).rstrip("\n"))
        return
    write_atomically(out, lambda place: place.write_text(str(made), encoding="utf-8"), force=force)
    say(f"Card in {shown(out)}.")
