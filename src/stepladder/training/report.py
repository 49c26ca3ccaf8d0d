"""`report.html`: curves and grids of a run in one file, which needs no other file and no network.

It is made from the files of the run folder, so it is consistent with the records after a kill and a resume. During a
run it is updated at most every half minute, and the browser reloads it.
"""

import base64
import io
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from stepladder.training.curves import Points, chart
from stepladder.training.records import loss_title, read_records, row_title, write_text

__all__ = ["Report"]

_SECONDS = 30
"""Between two versions at least, and until a browser loads the page again."""
_MOST_GRIDS = 8
_WIDEST = 1600
"""Pixels of an embedded grid."""

_STYLE = """
:root {color-scheme: light dark; --soft: rgba(127, 127, 127, .25);}
body {font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 1240px; padding: 1rem;}
h1 {font-size: 1.4rem; margin: 0;} h2 {font-size: 1.1rem; margin: 1.6rem 0 .4rem;}
.state {opacity: .75; margin: .1rem 0 .6rem;} progress {width: 100%; height: .6rem;}
dl {display: grid; grid-template-columns: repeat(auto-fit, minmax(118px, 1fr)); gap: .6rem; margin: .8rem 0;}
dl div {border: 1px solid var(--soft); border-radius: 6px; padding: .4rem .6rem;}
dt {font-size: .8rem; opacity: .75;} dd {margin: 0; font-size: 1.1rem; font-variant-numeric: tabular-nums;}
.charts {display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 1rem;}
figure {margin: 0; border: 1px solid var(--soft); border-radius: 6px; padding: .5rem;}
figcaption {font-weight: 600;} svg {width: 100%; height: auto; display: block;}
svg polyline {stroke-width: 1.6;} svg circle {stroke: none;} .grid path {stroke: var(--soft);}
.grid text {font-size: 14px; fill: currentColor; opacity: .8;}
@media (max-width: 500px) {.grid text {font-size: 20px;}}
figure ul {list-style: none; display: flex; flex-wrap: wrap; gap: .1rem 1rem; margin: .2rem 0 0; padding: 0;
  font-size: .85rem;}
figure i {display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .3em;}
details {margin: .3rem 0;} summary {cursor: pointer;} details p {margin: .2rem 0 .4rem;}
.sheet {overflow-x: auto;} img {max-width: 100%; height: auto; display: block;}
@media (max-width: 700px) {img {max-width: 720px;}}
pre {overflow-x: auto; background: var(--soft); border-radius: 6px; padding: .6rem; font-size: .8rem;}
"""


class Report:
    """Writes the report of a run folder, not more often than is worth its time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._written = float("-inf")
        self._embedded: dict[tuple[Path, int], str] = {}

    def update(self, *, at_once: bool, last: bool = False) -> None:
        """Writes it if the last version is old, or `at_once`, or if it is the `last` one of this session.

        Raises:
            OutputError: If the disk refuses.
        """
        now = time.monotonic()
        if not (at_once or last) and now - self._written < _SECONDS:
            return
        records = read_records(self._folder / "records.jsonl")
        if records:
            write_text(self._folder / "report.html", self._page(records, last=last))
        self._written = now

    def _page(self, records: Sequence[Mapping[str, Any]], *, last: bool) -> str:
        newest, name = records[-1], escape(self._folder.resolve().name)
        done = newest["step"] >= newest["steps"]
        again = "" if done or last else f'<meta http-equiv="refresh" content="{_SECONDS}">'
        written = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %z")
        stopped = f"stopped at step {newest['step']:,}" if last else "running when this was written"
        state = "finished" if done else stopped
        return (
            f'<!doctype html><html lang="en"><head><meta charset="utf-8">{again}'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{name}: step {newest['step']}</title>"
            f"<style>{_STYLE}</style></head><body><h1>{name}</h1>"
            f'<p class="state">{state}, {escape(written)}</p>'
            f'<progress aria-label="steps" max="{newest["steps"]}" value="{newest["step"]}"></progress>'
            f'{_facts(records)}<h2>Curves</h2><div class="charts">{"".join(_charts(records))}</div>'
            f"{self._grids(records)}{self._settings()}</body></html>\n"
        )

    def _grids(self, records: Sequence[Mapping[str, Any]]) -> str:
        """The newest grid open, earlier ones folded; those after the last record are of a session that was killed."""
        step = records[-1]["step"]
        found = {int(path.stem.rpartition("-")[2]): path for path in (self._folder / "grids").glob("step-*.png")}
        steps = sorted(place for place in found if place <= step)
        if not steps:
            return ""
        parts = []
        for place in reversed(_spread(steps, _MOST_GRIDS)):
            picture = f'<img alt="grid of step {place}" src="{self._inline(found[place])}">'
            opened = " open" if place == steps[-1] else ""
            rows = f'{_rows(records, place)}<div class="sheet">{picture}</div>'
            parts.append(f"<details{opened}><summary>Step {place:,}</summary>{rows}</details>")
        return f"<h2>Reconstructions</h2>{''.join(parts)}"

    def _inline(self, path: Path) -> str:
        """A grid as a data address, made once."""
        key = (path, path.stat().st_mtime_ns)
        if key not in self._embedded:
            with Image.open(path) as picture:
                small = picture.convert("RGB")
            small.thumbnail((_WIDEST, _WIDEST * 4))
            buffer = io.BytesIO()
            small.save(buffer, "JPEG", quality=88)
            self._embedded[key] = "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
        return self._embedded[key]

    def _settings(self) -> str:
        parts = []
        for title, name in (("Configuration", "config.json"), ("Environment", "environment.json")):
            place = self._folder / name
            if place.exists():
                text = escape(place.read_text(encoding="utf-8"))
                parts.append(f"<details><summary>{title}</summary><pre>{text}</pre></details>")
        return f"<h2>Settings</h2>{''.join(parts)}" if parts else ""


def _facts(records: Sequence[Mapping[str, Any]]) -> str:
    """The newest numbers."""
    last = records[-1]
    left = last["steps"] - last["step"]
    facts = {
        "step": f"{last['step']:,} of {last['steps']:,}",
        "images seen": f"{last['images_seen']:,}",
        "images a second": f"{last['images_per_second']:.4g}",
        "time": _clock(last["seconds"]),
        **({"time left": _clock(left * last["seconds"] / max(1, last["step"]))} if left > 0 else {}),
        "loss": "none" if last["loss"] is None else f"{last['loss']:.4g}",
    }
    qualities = [record["validation_psnr_db"] for record in records if record.get("validation_psnr_db")]
    for key, value in (qualities[-1] if qualities else {}).items():
        facts[f"PSNR, {row_title(key)}"] = f"{value:.2f} dB"
    skipped = sum(record.get("skipped_steps", 0) for record in records)
    if skipped:
        facts["skipped steps"] = str(skipped)
    cells = (f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    return f"<dl>{''.join(cells)}</dl>"


def _rows(records: Sequence[Mapping[str, Any]], step: int) -> str:
    """What the rows of the grid of a step show, with their PSNR; nothing where no record says."""
    known = {record["step"]: record["validation_psnr_db"] for record in records if record.get("validation_psnr_db")}
    if not known:
        return ""
    qualities = known.get(step)
    names = [
        row_title(key) + ("" if qualities is None else f" ({value:.2f} dB)")
        for key, value in (qualities or next(iter(known.values()))).items()
    ]
    return f"<p>Rows from the top: {escape(', '.join(['original', *names]))}</p>"


def _charts(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Loss, its parts, quality, what stages add, and how the run goes."""
    losses = [{"step": record["step"], **record.get("losses", {})} for record in records]
    charts = [chart("loss", {"loss": _points(records, "loss")})]
    for group, names in _grouped(dict.fromkeys(name for row in losses for name in row if name != "step")).items():
        charts.append(chart(group, {loss_title(name): _points(losses, name) for name in names}))
    charts.append(chart("PSNR of validation images, dB", _inner(records, "validation_psnr_db", row_title)))
    added = _inner(records, "stage_residuals", lambda key: f"stage {key}")
    charts.append(chart("what each stage adds: standard deviation on [-1, 1]", added))
    charts.append(chart("gradient norm", {"gradient norm": _points(records, "gradient_norm")}))
    charts.append(chart("learning rate", {"learning rate": _points(records, "learning_rate")}, linear=True))
    charts.append(chart("images a second", {"images a second": _points(records, "images_per_second")}, linear=True))
    return [each for each in charts if each]


def _points(rows: Sequence[Mapping[str, Any]], key: str) -> Points:
    return [(row["step"], row[key]) for row in rows if row.get(key) is not None]


def _inner(records: Sequence[Mapping[str, Any]], key: str, title: Callable[[str], str]) -> dict[str, Points]:
    """Series of a table or a list in records, by what its entries are called."""
    rows = []
    for record in records:
        found = record.get(key) or {}
        entries = found.items() if isinstance(found, Mapping) else enumerate(found)
        rows.append({"step": record["step"]} | {title(str(name)): value for name, value in entries})
    names = dict.fromkeys(name for row in rows for name in row if name != "step")
    return {name: _points(rows, name) for name in names}


def _grouped(names: Iterable[str]) -> dict[str, list[str]]:
    """Losses of stages, which end in the stage, share a chart."""
    groups: dict[str, list[str]] = {}
    for name in names:
        stem, _, stage = name.rpartition("_")
        title = f"{loss_title(stem)} by stage" if stem and stage.isdigit() else loss_title(name)
        groups.setdefault(title, []).append(name)
    return groups


def _spread(steps: Sequence[int], most: int) -> list[int]:
    """At most so many of them, the first and the last among them."""
    if len(steps) <= most:
        return list(steps)
    return [steps[round(index * (len(steps) - 1) / (most - 1))] for index in range(most)]


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
