"""A sweep's report as one HTML page that needs nothing else: no network, no file beside it.

This module chooses and formats what is shown; the markup, style and script are in `report.html.j2`, where jinja2
escapes all that is inserted: values of params and texts of errors may be anything. It depends on rows and pictures,
not on how they were made.
"""

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal.plots.html import page_template
from shoal.storage.records import TrialRow
from shoal.tune.trials import Mode, best, is_number, ranked

TEMPLATE = Path(__file__).with_name("report.html.j2")
FAILED = ("failed", "infeasible")
BROAD_PX = 1000
LONG_TEXT = 30  # characters above which a cell breaks its lines


@dataclass(frozen=True)
class Cell:
    """A cell of a table: its text, and the exact value that a number is sorted by."""

    text: str
    number: str | None

    @property
    def is_long(self) -> bool:
        return len(self.text) > LONG_TEXT


@dataclass(frozen=True)
class Table:
    heads: Sequence[str]
    lines: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Picture:
    caption: str
    base64: str
    is_broad: bool  # takes the page's whole width


def html_report(
    title: str,
    summary: Mapping[str, str],
    rows: Sequence[TrialRow],
    mode: Mode,
    metric: str,
    pictures: Mapping[str, bytes],
) -> str:
    """Return the page: the best trial, the summary, pictures by caption, all trials, and those that failed.

    Args:
        summary: text by label, e.g. {"trials": "14 finished, 2 infeasible"}.
        pictures: PNG bytes by caption.
    """
    return page_template(TEMPLATE).render(
        title=title,
        metric=metric,
        best=_headline(best(rows, mode)),
        summary=summary,
        pictures=[_picture(caption, png) for caption, png in pictures.items()],
        trials=_trials(rows, mode, metric),
        failures=_failures([row for row in rows if row.status in FAILED]),
    )


def _headline(row: TrialRow | None) -> dict[str, Any] | None:
    if row is None:
        return None
    params = {key: _text(value) for key, value in row.params.items()}
    return {"name": row.name, "value": f"{row.metric:.5g}", "steps": row.steps, "params": params}


def _picture(caption: str, png: bytes) -> Picture:
    width = int.from_bytes(png[16:20], "big")  # in a PNG's header
    return Picture(caption, base64.b64encode(png).decode(), width > BROAD_PX)


def _trials(rows: Sequence[TrialRow], mode: Mode, metric: str) -> Table:
    """Return all trials, the ranked ones first."""
    ranks = {row.number: rank for rank, row in enumerate(ranked(rows, mode), start=1)}
    keys = list(dict.fromkeys(key for row in rows for key in row.params))
    lines = [
        [ranks.get(row.number), row.name, row.status, row.metric]
        + [row.params.get(key) for key in keys]
        + [row.steps, row.seconds, row.node, row.reason]
        for row in sorted(rows, key=lambda row: (ranks.get(row.number, math.inf), row.number))
    ]
    return _table(["rank", "trial", "status", metric, *keys, "steps", "seconds", "node", "reason"], lines)


def _failures(rows: Sequence[TrialRow]) -> Table:
    lines = [
        [row.name, row.status, _params_text(row), row.node, row.error or row.reason, row.log] for row in rows
    ]
    return _table(["trial", "status", "params", "node", "error", "log"], lines)


def _table(heads: Sequence[str], lines: Iterable[Iterable[Any]]) -> Table:
    return Table(heads, [[_cell(value) for value in line] for line in lines])


def _cell(value: Any) -> Cell:
    return Cell(_text(value), repr(float(value)) if is_number(value) else None)


def _params_text(row: TrialRow) -> str:
    return ", ".join(f"{key}={_text(value)}" for key, value in row.params.items())


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else str(value)
