"""The trials of a sweep as plain rows: ranking, mean over seeds, one table of all.

It does not know how trials are run or drawn. A trial is ranked when it finished or was stopped early, with a finite
metric. One that took the result of another at the same point is in the table and not ranked: the other one is.
"""

import math
import statistics
from bisect import insort
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice, pairwise
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Literal

from shoal.storage.records import TrialRow

if TYPE_CHECKING:
    import pandas as pd


Mode = Literal["min", "max"]
RANKED = ("finished", "stopped")
ENDED = (*RANKED, "infeasible", "failed", "reused")
LOG_SPAN = 20.0


@dataclass(frozen=True)
class PointRow:
    """The repeats of one point, which differ by their seed alone.

    Attributes:
        mean, std: of the metric; the sample standard deviation, 0 for a single repeat.
        numbers: of the trials.
    """

    point: int
    params: dict[str, Any]
    mean: float
    std: float
    count: int
    numbers: tuple[int, ...]


def ranked(rows: Iterable[TrialRow], mode: Mode) -> list[TrialRow]:
    """Return the ranked trials, best first; equal metrics in order of their number."""
    sign = _sign(mode)
    return sorted(filter(_is_ranked, rows), key=lambda row: (sign * _metric(row), row.number))


def best(rows: Iterable[TrialRow], mode: Mode) -> TrialRow | None:
    """Return the best of the ranked trials, or None before there is any."""
    return next(iter(ranked(rows, mode)), None)


def points(rows: Iterable[TrialRow], mode: Mode) -> list[PointRow]:
    """Return mean and spread of every point with all repeats ranked, best mean first."""
    repeats: dict[int, list[TrialRow]] = defaultdict(list)
    for row in rows:
        repeats[row.point].append(row)
    done = [_aggregate(group) for group in repeats.values() if all(map(_is_ranked, group))]
    return sorted(done, key=lambda point: (_sign(mode) * point.mean, point.point))


class Ranking:
    """Which trials are the best, kept in order as they end: no event sorts or scans all of them.

    Attributes:
        best: the row with the best metric of all ranked trials; None before there is any.
    """

    def __init__(self, mode: Mode, repeat: int, keep: int) -> None:
        """Set up.

        Args:
            repeat: seeds of each point; their mean ranks a point, which is known when all of them have ended.
            keep: how many of the best trials `add` keeps.
        """
        self.best: TrialRow | None = None
        self._sign, self._repeat, self._keep = _sign(mode), repeat, keep
        self._open: dict[int, list[TrialRow]] = {}  # by point, of those with seeds that have not ended
        # Points with all seeds ranked come first; what is left of the others follows, trial by trial.
        self._order: list[tuple[int, float, int, tuple[int, ...]]] = []
        self._kept: set[int] = set()

    def add(self, row: TrialRow) -> list[int]:
        """Take a trial that has ended; return the numbers of those that cannot be among the best any more.

        Until all seeds of a point have ended none of them is among these.
        """
        if row.status not in ENDED:
            return []
        if _is_ranked(row) and (self.best is None or self._place(row) < self._place(self.best)):
            self.best = row
        seeds = self._open.setdefault(row.point, [])
        seeds.append(row)
        if len(seeds) < self._repeat:
            return []
        del self._open[row.point]
        for block in self._blocks(seeds):
            insort(self._order, block)
        ended = self._kept.union(seed.number for seed in seeds)
        self._kept = ended.intersection(self._first())
        return sorted(ended - self._kept)

    def _blocks(self, seeds: Sequence[TrialRow]) -> list[tuple[int, float, int, tuple[int, ...]]]:
        done = sorted(filter(_is_ranked, seeds), key=self._place)
        if len(done) == len(seeds):
            mean = statistics.fmean(map(_metric, done))
            return [(0, self._sign * mean, done[0].point, tuple(row.number for row in done))]
        return [(1, *self._place(row), (row.number,)) for row in done]

    def _first(self) -> Iterator[int]:
        return islice((number for *_, numbers in self._order for number in numbers), self._keep)

    def _place(self, row: TrialRow) -> tuple[float, int]:
        return self._sign * _metric(row), row.number


def cells(rows: Iterable[TrialRow], keys: Sequence[str], mode: Mode) -> dict[tuple[Any, ...], float]:
    """Return the metric by the values of some params: the mean over repeats, the best over other params.

    Trials that are not ranked or lack one of the keys are left out; values other than numbers are keyed by
    their text.
    """
    repeats: dict[tuple[Any, int], list[float]] = defaultdict(list)
    for row in rows:
        if _is_ranked(row) and all(key in row.params for key in keys):
            cell = tuple(plain(row.params[key]) for key in keys)
            repeats[cell, row.point].append(_metric(row))
    pick = min if mode == "min" else max
    found: dict[tuple[Any, ...], float] = {}
    for (cell, _), metrics in repeats.items():
        mean = statistics.fmean(metrics)
        found[cell] = pick(found.get(cell, mean), mean)
    return found


def varying(rows: Iterable[TrialRow]) -> list[str]:
    """Return the params that take at least two values, in the order in which the trials name them."""
    seen: dict[str, set[Any]] = {}
    for row in rows:
        for key, value in row.params.items():
            seen.setdefault(key, set()).add(plain(value))
    return [key for key, values in seen.items() if len(values) > 1]


def to_table(rows: Sequence[TrialRow]) -> "pd.DataFrame":
    """Return one row per trial with a column per param, ready for CSV and parquet.

    Columns of integers are Int64, of other numbers Float64, of booleans boolean; all others, also those of mixed
    types, are text. What a trial lacks is missing.
    """
    import pandas as pd

    columns: dict[str, Any] = {
        "number": pd.array([row.number for row in rows], dtype="Int64"),
        "point": pd.array([row.point for row in rows], dtype="Int64"),
        "repeat": pd.array([row.repeat for row in rows], dtype="Int64"),
        "name": pd.array([row.name for row in rows], dtype="string"),
        "status": pd.array([row.status for row in rows], dtype="string"),
    }
    for key in dict.fromkeys(key for row in rows for key in row.params):
        columns.setdefault(key, _column([row.params.get(key) for row in rows]))
    fields = [asdict(row) for row in rows]
    types = {"metric": "Float64", "steps": "Int64", "seconds": "Float64"}
    types |= {"parameters": "Int64", "flops": "Float64", "training_s": "Float64"}
    types |= {"started_s": "Float64", "ended_s": "Float64"}
    types |= dict.fromkeys(("reason", "node", "error", "log", "same_as"), "string")
    for key, kind in types.items():
        columns[key] = pd.array([row[key] for row in fields], dtype=kind)
    return pd.DataFrame(columns)


def is_number(value: Any) -> bool:
    """Whether a value lies on a numeric axis; booleans are categories."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def is_log(values: Iterable[float]) -> bool:
    """Whether values are better drawn on a log axis.

    So are positive values that are about evenly spaced in ratio (a grid), or that span more than 20x with a median
    nearer to the geometric than to the arithmetic middle (which a uniform range down to 0 has not).
    """
    distinct = sorted(set(values))
    if len(distinct) < 2 or distinct[0] <= 0:
        return False
    low, high, median = distinct[0], distinct[-1], statistics.median_low(distinct)
    ratios = [high / low for low, high in pairwise(distinct)]
    is_geometric = len(ratios) > 1 and min(ratios) >= 1.5 and max(ratios) < 1.2 * min(ratios)
    is_skewed = median**2 < math.sqrt(low * high) * (low + high) / 2
    return is_geometric or (high > LOG_SPAN * low and is_skewed)


def limits(metrics: Sequence[float], mode: Mode) -> tuple[float, float]:
    """Return the (lowest, highest) metric of a colour scale or axis, so that diverged trials do not stretch it.

    The bad end lies beyond the median by at most three times the distance from the best to the median. This works
    while fewer than half of the trials diverged.
    """
    low, high, middle = min(metrics), max(metrics), statistics.median(metrics)
    if mode == "min":
        fence = middle + 3 * (middle - low)
        return low, min(high, fence) if fence > low else high
    fence = middle - 3 * (high - middle)
    return max(low, fence) if fence < high else low, high


def plain(value: Any) -> Any:
    """Return a number as it is and anything else as text: hashable, and equal when it reads the same."""
    return value if is_number(value) else str(value)


def _sign(mode: Mode) -> int:
    return 1 if mode == "min" else -1


def _is_ranked(row: TrialRow) -> bool:
    return row.status in RANKED and row.metric is not None and math.isfinite(row.metric)


def _metric(row: TrialRow) -> float:
    """The metric of a ranked trial."""
    assert row.metric is not None
    return row.metric


def _aggregate(repeats: Sequence[TrialRow]) -> PointRow:
    metrics = [_metric(row) for row in repeats]
    return PointRow(
        point=repeats[0].point,
        params=repeats[0].params,
        mean=statistics.fmean(metrics),
        std=statistics.stdev(metrics) if len(metrics) > 1 else 0.0,
        count=len(metrics),
        numbers=tuple(row.number for row in repeats),
    )


def _column(values: Sequence[Any]) -> Any:
    import pandas as pd

    present = [value for value in values if value is not None]
    if all(isinstance(value, bool) for value in present):
        return pd.array(values, dtype="boolean")
    if all(isinstance(value, Real) and not isinstance(value, bool) for value in present):
        is_integer = all(isinstance(value, Integral) for value in present)
        return pd.array(values, dtype="Int64" if is_integer else "Float64")
    return pd.array([None if value is None else str(value) for value in values], dtype="string")
