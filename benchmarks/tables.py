"""Writes the tables of the documentation from the recorded measurements.

A page holds a pair of markers; what stands between them is generated from `benchmarks/results/NAME.json`:

    <!-- table: NAME -->
    ...
    <!-- end table -->

    python benchmarks/tables.py            writes the tables
    python benchmarks/tables.py --check    changes nothing; exit 1 and one line where a page is out of date

A measurement is recorded by `benchmarks/record.py`. Until there is one, the table says so.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
RECORD_KEYS = ("hardware", "commit", "seed", "command", "report")

_BLOCK = re.compile(
    r"(?P<open><!-- table: (?P<name>[\w.-]+) -->\n)(?P<body>.*?)(?P<close><!-- end table -->)", re.DOTALL
)

Row = Mapping[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(description="Write the tables of the pages from benchmarks/results.")
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a table is out of date")
    check = parser.parse_args(arguments).check
    try:
        stale = [page for page in pages() if update(page, write=not check)]
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    failed = [f"tables of {page.relative_to(ROOT)} are out of date. Run: make tables" for page in stale if check]
    failed += [
        f"results/{name}.json is in no page. Add '<!-- table: {name} -->' and '<!-- end table -->' to one."
        for name in sorted(recorded() - shown())
    ]
    for message in failed:
        print(f"error: {message}", file=sys.stderr)
    if not check:
        print(*(f"{page.relative_to(ROOT)}: tables written" for page in stale), sep="\n", end="\n" if stale else "")
    return 1 if failed else 0


def pages() -> list[Path]:
    """The pages that may hold tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def recorded() -> set[str]:
    """Names of the recorded measurements."""
    return {path.stem for path in RESULTS.glob("*.json")}


def shown() -> set[str]:
    """Names of the tables that the pages ask for."""
    return {match["name"] for page in pages() for match in _BLOCK.finditer(page.read_text("utf-8"))}


def update(page: Path, *, write: bool) -> bool:
    """Whether a page's tables differ from the recorded measurements; writes the page if so and asked to."""
    before = page.read_text("utf-8")
    after = _BLOCK.sub(lambda match: f"{match['open']}{table(match['name'])}{match['close']}", before)
    if write and after != before:
        page.write_text(after, "utf-8")
    return after != before


def table(name: str) -> str:
    """The table of one measurement in Markdown, or a line that there is none yet."""
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        return f"*Not measured yet: no `benchmarks/results/{name}.json` has been recorded.*\n"
    return render(load(path))


def load(path: Path) -> dict[str, Any]:
    """Reads one record.

    Raises:
        ValueError: If the file is not a record, or has no rows.
    """
    record = json.loads(path.read_text("utf-8"))
    missing = [key for key in RECORD_KEYS if key not in record]
    if missing:
        raise ValueError(f"{path.name} lacks {missing}. A record has {list(RECORD_KEYS)}. Make it with record.py.")
    if not record["report"]["rows"]:
        raise ValueError(f"{path.name} has no rows. At least one is needed. Record it again with record.py.")
    return dict(record)


def render(record: Mapping[str, Any]) -> str:
    """Table and caption of one record. The first row is what the last column compares with."""
    report = record["report"]
    rows: Sequence[Row] = report["rows"]
    kept = [(head, cell) for head, key, cell in _columns(rows) if any(row.get(key) is not None for row in rows)]
    lines = [
        "| " + " | ".join(head for head, _ in kept) + " |",
        "|" + "|".join([" --- "] + [" ---: "] * (len(kept) - 1)) + "|",
        *("| " + " | ".join(cell(row) for _, cell in kept) + " |" for row in rows),
    ]
    caption = (
        f"{report['images']} images of {report['data']} at {report['size']} x {report['size']}, seed {record['seed']}; "
        f"{record['hardware']}, {report['device']}, {report['threads']} threads, batch {_batches(rows)}; "
        f"commit {record['commit']}; `{record['command']}`"
    )
    return "\n".join(lines) + f"\n\n{caption}\n"


def _columns(rows: Sequence[Row]) -> list[tuple[str, str, Callable[[Row], str]]]:
    """Heading, the key that it needs, and how a cell reads. A column without a value in any row is left out."""
    first = rows[0]

    def number(key: str, digits: int) -> Callable[[Row], str]:
        return lambda row: "-" if row.get(key) is None else f"{row[key]:.{digits}f}"

    def speed(row: Row) -> str:
        return f"{first['seconds_per_image'] / row['seconds_per_image']:.1f} x"

    return [
        ("model", "model", _spec),
        ("stages", "stages", number("stages", 0)),
        ("evaluations", "network_evaluations", number("network_evaluations", 0)),
        ("PSNR, dB", "psnr_db", number("psnr_db", 2)),
        ("SSIM", "ssim", number("ssim", 4)),
        ("LPIPS (VGG)", "lpips_vgg", number("lpips_vgg", 4)),
        ("rFID", "rfid", number("rfid", 2)),
        ("FD (EfficientNet-Lite0)", "fd_efficientnet_lite0", number("fd_efficientnet_lite0", 2)),
        ("colour shift", "colour_shift", number("colour_shift", 4)),
        ("GFLOP", "gflop_per_image", number("gflop_per_image", 0)),
        ("s per image", "seconds_per_image", number("seconds_per_image", 3)),
        (f"faster than {_spec(first)}", "seconds_per_image", speed),
    ]


def _spec(row: Row) -> str:
    return f"`{row['model']}@{row['steps_per_stage']}`"


def _batches(rows: Sequence[Row]) -> str:
    return ", ".join(str(batch) for batch in sorted({row["batch"] for row in rows}))


if __name__ == "__main__":
    sys.exit(main())
