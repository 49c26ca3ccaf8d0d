"""Output of `stepladder evaluate --json` as a table for a card and as results for its header."""

from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult

from stepladder.errors import ConfigError
from stepladder.measure.evaluation import METRICS
from stepladder.measure.metrics import Metric

__all__ = ["card_results", "card_table"]

_NEEDED = ("data", "images", "size", "device", "rows")


def card_table(report: Mapping[str, Any], *, where: str) -> str:
    """A Markdown table of an evaluation, under a line on what was measured.

    Args:
        report: One object of `stepladder evaluate --json`.
        where: What it came from, for messages.

    Raises:
        ConfigError: If it is none.
    """
    rows = _rows(report, where)
    metrics = [metric for metric in METRICS if any(row.get(metric.key) is not None for row in rows)]
    headings = ["model", "evaluations", *(metric.heading for metric in metrics), "s/image"]
    lines = [f"| {' | '.join(headings)} |", "| --- |" + " ---: |" * (len(headings) - 1)]
    for row in rows:
        seconds = f"{row['seconds_per_image']:.4f}"
        cells = [_name(row), str(row["network_evaluations"]), *(_cell(row, metric) for metric in metrics), seconds]
        lines.append(f"| {' | '.join(cells)} |")
    return f"{_data(report)}, {report['device']}.\n\n" + "\n".join(lines)


def card_results(report: Mapping[str, Any], model: str, *, where: str) -> list[EvalResult]:
    """The metrics of one model, in its first row, for the header of a card.

    Args:
        report: One object of `stepladder evaluate --json`.
        model: As it was named there, without its steps.
        where: What it came from, for messages.

    Raises:
        ConfigError: If it is none, or does not hold the model.
    """
    rows = [row for row in _rows(report, where) if row["model"] == model]
    if not rows:
        known = ", ".join(dict.fromkeys(row["model"] for row in report["rows"])) or "none"
        raise ConfigError(f"{where} holds no row of {model}. It holds: {known}. Evaluate {model} first.")
    row = rows[0]
    return [
        EvalResult(
            task_type="image-to-image",
            task_name=f"reconstruction, {_counted(row['steps_per_stage'], 'step')} per stage",
            dataset_type="custom",
            dataset_name=_data(report),
            metric_type=metric.key,
            metric_name=metric.heading,
            metric_value=round(row[metric.key], metric.digits),
        )
        for metric in METRICS
        if row.get(metric.key) is not None
    ]


def _rows(report: Mapping[str, Any], where: str) -> Sequence[Mapping[str, Any]]:
    whole = isinstance(report, Mapping) and all(key in report for key in _NEEDED) and isinstance(report["rows"], list)
    keys = ("model", "steps_per_stage", "network_evaluations", "seconds_per_image")
    if not whole or not all(isinstance(row, Mapping) and all(key in row for key in keys) for row in report["rows"]):
        raise ConfigError(
            f"{where} is no evaluation. Accepted: what stepladder evaluate prints with --json. Write it with: "
            "stepladder evaluate DATA MODEL --json > results.json."
        )
    rows: Sequence[Mapping[str, Any]] = report["rows"]
    return rows


def _name(row: Mapping[str, Any]) -> str:
    return f"{row['model']}@{row['steps_per_stage']}"


def _cell(row: Mapping[str, Any], metric: Metric) -> str:
    value = row.get(metric.key)
    return "-" if value is None else f"{value:.{metric.digits}f}"


def _data(report: Mapping[str, Any]) -> str:
    return f"{_counted(report['images'], 'image')} of {report['data']} at {report['size']} x {report['size']}"


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
