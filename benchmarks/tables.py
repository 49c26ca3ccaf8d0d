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

from stepladder.measure.evaluation import METRICS
from stepladder.measure.metrics import Metric

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
RECORD_KEYS = ("hardware", "commit", "seed", "command", "report")

_BLOCK = re.compile(
    r"(?P<open><!-- table: (?P<name>[\w.-]+) -->\n)(?P<body>.*?)(?P<close><!-- end table -->)", re.DOTALL
)

Row = Mapping[str, Any]
Cell = Callable[[Row], str]
Column = tuple[str, str, Cell]
"""Heading, the key that it needs, and how a cell reads."""


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
    """Table and caption of one record, of an evaluation or a benchmark. Speeds are compared with the first row's."""
    report = record["report"]
    rows: Sequence[Row] = report["rows"]
    columns = _columns(report)
    kept = [(head, cell) for head, key, cell in columns if any(row.get(key) is not None for row in rows)]
    lines = [
        "| " + " | ".join(head for head, _ in kept) + " |",
        "|" + "|".join([" --- "] + [" ---: "] * (len(kept) - 1)) + "|",
        *("| " + " | ".join(cell(row) for _, cell in kept) + " |" for row in rows),
    ]
    missing = _missing(columns, kept, report.get("notes", {}))
    return "\n".join([*lines, "", *missing, _caption(record)]) + "\n"


def spec(row: Row) -> str:
    """`MODEL@N` of a row; of a model that is a path, its last part."""
    return f"{str(row['model']).rstrip('/').rpartition('/')[2]}@{row['steps_per_stage']}"


def _quality_columns(rows: Sequence[Row]) -> list[Column]:
    """Of an evaluation. A column without a value in any row is left out."""
    return [
        ("model", "model", _code),
        *([("sampler", "sampler", _sampler)] if any(_sampler(row) != "euler" for row in rows) else []),
        ("stages", "stages", _number("stages", 0)),
        ("evaluations", "network_evaluations", _number("network_evaluations", 0)),
        *(column for metric in METRICS for column in _metric_columns(metric, _code(rows[0]))),
        ("FD of reconstructions", "fd_reconstructions", _number("fd_reconstructions", 2)),
        ("distance to training images", "drawn_to_training", _number("drawn_to_training", 3)),
        ("that of reconstructions", "reconstructed_to_training", _number("reconstructed_to_training", 3)),
        ("over the initial estimate, dB (each stage over the one before)", "stage_gains", _gains),
        ("GFLOP", "gflop_per_image", lambda row: _three(row["gflop_per_image"])),
        ("s to draw a latent", "prior_seconds_per_image", lambda row: _three(row["prior_seconds_per_image"])),
        ("s per image", "seconds_per_image", lambda row: _three(row["seconds_per_image"])),
        (f"faster than {_code(rows[0])}", "seconds_per_image", _speed(rows)),
    ]


def _metric_columns(metric: Metric, first: str) -> list[Column]:
    """A metric, and what it is above that of the first row, where the difference has an interval."""
    key = f"{metric.key}_over_first_interval"
    return [
        (metric.heading, metric.key, _measured(metric.key, metric.digits)),
        (f"above that of {first}", key, _middle(key, metric.digits)),
    ]


def _speed_columns(rows: Sequence[Row]) -> list[Column]:
    """Of a benchmark. The side is told where there are several."""
    sides = [("side", "size", _number("size", 0))] if len({row["size"] for row in rows}) > 1 else []
    return [
        ("model", "model", _code),
        *sides,
        ("evaluations", "network_evaluations", _number("network_evaluations", 0)),
        ("GFLOP", "gflop_per_image", lambda row: _three(row["gflop_per_image"])),
        ("s per image", "seconds_per_image", lambda row: _three(row["seconds_per_image"])),
        ("s in each stage", "seconds_per_stage", _per_stage),
        ("images a second", "images_per_second", lambda row: _three(row["images_per_second"])),
        ("peak memory, MiB", "peak_memory_mib", _number("peak_memory_mib", 0)),
        ("share of peak", "share_of_peak", _percent),
        (f"faster than {_code(rows[0])}", "seconds_per_image", _speed(rows)),
    ]


def _columns(report: Mapping[str, Any]) -> list[Column]:
    """Of the kind of report that it is."""
    rows: Sequence[Row] = report["rows"]
    if "seeds" in report:
        return _decision_columns()
    if "scale_side" in rows[0]:
        return _scale_columns()
    if "path" in rows[0]:
        return _path_columns(rows)
    if "psnr_db_bfloat16" in rows[0]:
        return _precision_columns()
    return _quality_columns(rows) if "data" in report else _speed_columns(rows)


def _precision_columns() -> list[Column]:
    """Of models in two precisions."""
    return [
        ("model", "model", _code),
        ("side", "size", _number("size", 0)),
        ("PSNR in float32, dB", "psnr_db_float32", _number("psnr_db_float32", 2)),
        ("in bfloat16, dB", "psnr_db_bfloat16", _number("psnr_db_bfloat16", 2)),
        ("change, dB", "psnr_change_db", _signed("psnr_change_db")),
    ]


def _path_columns(rows: Sequence[Row]) -> list[Column]:
    """Of the paths of one decode."""
    return [
        ("path", "path", lambda row: str(row["path"])),
        ("side", "size", _number("size", 0)),
        ("s per image", "seconds_per_image", lambda row: _three(row["seconds_per_image"])),
        ("faster than the first", "seconds_per_image", _speed(rows)),
        ("PSNR against the first, dB", "psnr_change_db", _signed("psnr_change_db")),
    ]


def _signed(key: str) -> Cell:
    return lambda row: "-" if row.get(key) is None else f"{row[key]:+.3f}"


def _decision_columns() -> list[Column]:
    """Of what stages decide."""
    return [
        ("model", "model", _code),
        ("stage", "stage", _number("stage", 0)),
        ("downscale", "downscale", _number("downscale", 0)),
        ("spread over seeds", "spread", _number("spread", 4)),
        ("decided by the stage", "decided", _number("decided", 4)),
    ]


def _scale_columns() -> list[Column]:
    """Of the image of each stage, at its own scale."""
    return [
        ("model", "model", _code),
        ("stage", "stage", _number("stage", 0)),
        ("side", "scale_side", _number("scale_side", 0)),
        ("PSNR of the initial estimate, dB", "initial_psnr_db", _number("initial_psnr_db", 2)),
        ("of the stage, dB", "stage_psnr_db", _number("stage_psnr_db", 2)),
        ("FD (Lite2) of the initial estimate", "initial_fd", _number("initial_fd", 1)),
        ("of the stage", "stage_fd", _number("stage_fd", 1)),
    ]


def _caption(record: Mapping[str, Any]) -> str:
    """What was measured on what, how, by which command."""
    report = record["report"]
    place = f"{record['hardware']}, {report['device']}, {report['threads']} threads"
    origin = f"commit {record['commit']}; `{record['command']}`"
    if "psnr_db_bfloat16" in report["rows"][0]:
        return f"{report['images']} images of {report['data']}, seed {record['seed']}; {place}; {origin}"
    if "seeds" in report:
        images = f"{report['images']} images of {report['data']} at {report['size']} x {report['size']}"
        return f"Standard deviations on [-1, 1]; {images}, {report['seeds']} seeds; {place}; {origin}"
    if "data" in report and "path" not in report["rows"][0]:
        batches = ", ".join(str(batch) for batch in sorted({row["batch"] for row in report["rows"]}))
        cut = f", {report['crops']} crops of each," if report.get("crops", 1) > 1 else ""
        images = f"{report['images']} images of {report['data']}{cut} at {report['size']} x {report['size']}"
        return f"{images}, seed {record['seed']}; {place}, batch {batches}; {origin}"
    sides = ", ".join(str(side) for side in sorted({row["size"] for row in report["rows"]}))
    how = f"{report['dtype']}{', compiled' if report['compiled'] else ''}, batch {report['batch']}"
    peak = report["peak_gflops"]
    limit = f"; peak {peak:.0f} GFLOP/s" if peak else ""
    return f"Decodes at side {sides}, median of {report['repeats']}, {how}; {place}{limit}; {origin}"


def _missing(columns: Sequence[Column], kept: Sequence[tuple[str, Cell]], notes: Mapping[str, str]) -> list[str]:
    """A line that says why columns are left out: the first clause of the note on each, without paths; or none."""
    heads = {head for head, _ in kept}
    reasons = []
    for head, key, _ in columns:
        if head not in heads and key in notes:
            name = head.partition(" ")[0]
            reason = re.split(r"[,;:.] ", notes[key])[0].removeprefix(name).strip(" .")
            reasons.append(f"{name} ({reason})")
    return [f"Not measured here: {', '.join(reasons)}.", ""] if reasons else []


def _number(key: str, digits: int) -> Cell:
    return lambda row: "-" if row.get(key) is None else f"{row[key]:.{digits}f}"


def _gains(row: Row) -> str:
    """What the decode adds to the initial estimate, and in brackets what each stage adds to what it is handed."""
    gains = row.get("stage_gains")
    if not gains:
        return "-"
    stages = ", ".join(f"{gain['over_before_db']:+.2f}" for gain in gains)
    return f"{gains[-1]['over_initial_db']:+.2f} ({stages})"


def _sampler(row: Row) -> str:
    """`heun, texture 0.75`; old records know Euler steps alone."""
    texture, shift = row.get("texture", 1), row.get("shift")
    parts = [
        row.get("sampler", "euler"),
        f"texture {texture:g}" if texture < 1 else "",
        f"shift {shift}" if shift else "",
    ]
    return ", ".join(filter(None, parts))


def _measured(key: str, digits: int) -> Cell:
    """A metric, with half the width of its interval where there is one."""

    def cell(row: Row) -> str:
        interval = row.get(f"{key}_interval")
        spread = f" ± {interval[1] - row[key]:.{digits}f}" if interval else ""
        return f"{_number(key, digits)(row)}{spread}"

    return cell


def _middle(key: str, digits: int) -> Cell:
    """The middle of an interval, and half its width."""

    def cell(row: Row) -> str:
        if key not in row:
            return "-"
        low, high = row[key]
        return f"{(low + high) / 2:+.{digits}f} ± {(high - low) / 2:.{digits}f}"

    return cell


def _percent(row: Row) -> str:
    return "-" if row.get("share_of_peak") is None else f"{100 * row['share_of_peak']:.0f} %"


def _per_stage(row: Row) -> str:
    return " + ".join(map(_three, row["seconds_per_stage"] or ())) or "-"


def _three(value: float) -> str:
    """Three digits that count, whatever the device and the size."""
    return f"{value:#.3g}" if value < 100 else f"{value:.0f}"


def _speed(rows: Sequence[Row]) -> Cell:
    """Against the first row of the same side."""
    first: dict[Any, float] = {}
    for row in rows:
        first.setdefault(row.get("size"), row["seconds_per_image"])

    def speed(row: Row) -> str:
        times = first[row.get("size")] / row["seconds_per_image"]
        return f"{times:.1f} x" if times > 0.95 else f"{times:.2f} x"

    return speed


def _code(row: Row) -> str:
    return f"`{spec(row)}`"


if __name__ == "__main__":
    sys.exit(main())
