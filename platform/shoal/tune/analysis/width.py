"""Whether the best learning rate drifts with the width; with a parametrization such as muP it should not.

It knows tried rates and their metrics, not how the models were parametrized. The question and the picture are
those of Yang, Hu et al. 2022, "Tensor Programs V" (muTransfer), figure 1.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from shoal.plots.figure import new_figure
from shoal.storage.records import TrialRow
from shoal.tune.trials import Mode, cells, is_number, limits

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Drift = Literal["stable", "drifts", "unclear"]
Parabola = tuple[float, float, float]  # of log2(rate), highest power first
Curve = list[tuple[float, float]]  # (rate, metric), by rate
DIVERGED = 10.0  # times the median distance from the best metric: such points are left out of the fit
STABLE_OCTAVES = 1.0
STABLE_SLOPE = 0.5  # halfway between rates that stay (0) and rates that fall as 1/width (-1)


@dataclass(frozen=True)
class WidthOptimum:
    """The best learning rate of one width.

    Attributes:
        lr: the parabola's vertex; the best tried rate if that is at the edge.
        metric: the best one measured.
        at_edge: whether no optimum inside the tried rates could be fitted, so that the best may lie beyond them.
        fitted: lowest and highest rate that the parabola was fitted to.
    """

    width: float
    lr: float
    metric: float
    at_edge: bool
    parabola: Parabola | None
    fitted: tuple[float, float] | None


@dataclass(frozen=True)
class WidthReport:
    """The best learning rate of each width and how it drifts.

    The drift is `unclear` with fewer than two optima inside the tried rates; else `stable` if the best rates of all
    widths lie within a factor of 2 of their geometric mean and move by less than half an octave per doubling of the
    width; else `drifts` if the fitted line moves them by an octave or more from the narrowest to the widest; else
    `unclear`, since they scatter.

    Attributes:
        optima: by width.
        slope: octaves of the best rate per doubling of the width, by ordinary least squares.
    """

    lr_key: str
    width_key: str
    mode: Mode
    optima: tuple[WidthOptimum, ...]
    slope: float
    drift: Drift

    def text(self) -> str:
        """Return a line per width, and the summary."""
        width, rate = self.width_key.rpartition(".")[2], f"best {self.lr_key.rpartition('.')[2]}"
        lines = [f"{width:>8}  {rate:>10}  {'metric':>10}"]
        for optimum in self.optima:
            note = "  at the edge of the tried rates" if optimum.at_edge else ""
            lines.append(f"{optimum.width:>8g}  {optimum.lr:>10.3g}  {optimum.metric:>10.4g}{note}")
        return "\n".join([*lines, self.summary])

    @property
    def summary(self) -> str:
        """The drift in one line."""
        inside = sum(not optimum.at_edge for optimum in self.optima)
        bounds = "" if inside == len(self.optima) else f" ({len(self.optima) - inside} at the edge)"
        if self.drift == "stable":
            mean = 2 ** statistics.fmean(math.log2(optimum.lr) for optimum in self.optima)
            return f"stable: one learning rate near {mean:.2g} serves every width{bounds}"
        if self.drift == "drifts":
            verb, every = "halves" if self.slope < 0 else "doubles", 1 / abs(self.slope)
            doublings = "doubling" if f"{every:.2g}" == "1" else f"{every:.2g} doublings"
            return f"drifts: the best learning rate {verb} every {doublings} of the width{bounds}"
        if inside < 2:
            return f"unclear: {inside} of {len(self.optima)} widths have an optimum inside the tried rates"
        return "unclear: the best learning rates scatter without a trend"


def width_report(rows: Sequence[TrialRow], lr_key: str, width_key: str, mode: Mode) -> WidthReport | None:
    """Return the best learning rate by width, or None with fewer than two widths of ranked trials.

    The metric of a width and rate is the mean over seeds, and the best over other params. Each width's optimum is the
    vertex of a parabola in log2(rate), fitted by least squares to the tried rates nearest the best.
    """
    curves = _curves(rows, lr_key, width_key, mode)
    if len(curves) < 2:
        return None
    optima = tuple(_optimum(width, curve, mode) for width, curve in curves.items())
    slope = _slope(optima)
    return WidthReport(lr_key, width_key, mode, optima, slope, _drift(optima, slope))


def width_figure(report: WidthReport, rows: Sequence[TrialRow], metric: str) -> "Figure":
    """Draw the metric against the learning rate: a curve per width, its parabola (dashed) and vertex (star)."""
    import matplotlib
    import numpy as np

    figure, axes = new_figure(report.summary)
    curves = _curves(rows, report.lr_key, report.width_key, report.mode)
    bottom, top = limits([value for curve in curves.values() for _, value in curve], report.mode)
    colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.85, len(report.optima)))
    for optimum, color in zip(report.optima, colors, strict=True):
        rates, metrics = zip(*curves[optimum.width], strict=True)
        style = {"color": color, "markersize": 4, "alpha": 0.55, "label": f"{optimum.width:g}"}
        axes.plot(rates, np.clip(metrics, bottom, top), "o-", **style)
        if optimum.parabola and optimum.fitted:
            low, high = optimum.fitted
            grid = np.geomspace(min(low, optimum.lr), max(high, optimum.lr), 100)
            axes.plot(grid, np.polyval(optimum.parabola, np.log2(grid)), "--", color=color, linewidth=1)
            height = np.polyval(optimum.parabola, math.log2(optimum.lr))
            axes.plot(optimum.lr, height, "*", color=color, markersize=14, markeredgecolor="black", zorder=3)
    margin = 0.06 * (top - bottom) or 1.0
    axes.set_ylim(bottom - margin, top + margin)
    axes.set_xscale("log")
    axes.set_xlabel(report.lr_key)
    axes.set_ylabel(metric)
    axes.grid(alpha=0.3)
    axes.legend(title=report.width_key)
    return figure


def _curves(rows: Sequence[TrialRow], lr_key: str, width_key: str, mode: Mode) -> dict[float, Curve]:
    """Return the metric by rate, by width."""
    curves: dict[float, Curve] = {}
    found = cells(rows, (width_key, lr_key), mode).items()
    for (width, rate), metric in sorted(item for item in found if all(map(_is_positive, item[0]))):
        curves.setdefault(width, []).append((rate, metric))
    return curves


def _is_positive(value: Any) -> bool:
    return is_number(value) and value > 0


def _optimum(width: float, curve: Curve, mode: Mode) -> WidthOptimum:
    """Return the vertex of the widest plausible fit, or the best tried rate.

    A vertex is accepted within an octave of the best tried rate or up to its neighbours, whichever is wider. Five
    points average out noise; where their parabola is skewed, the three nearest always give a vertex, if there is a
    worse one on each side of the best.
    """
    sign = 1 if mode == "min" else -1
    place = min(range(len(curve)), key=lambda index: sign * curve[index][1])
    rate, metric = curve[place]
    low = max(min(curve[max(place - 1, 0)][0], rate / 2), curve[0][0])
    high = min(max(curve[min(place + 1, len(curve) - 1)][0], rate * 2), curve[-1][0])
    for count in range(min(len(curve), 5), 2, -1):
        chosen = _near(curve, place, count)
        if all(value == metric for _, value in chosen):
            continue  # flat: the fit would only find rounding errors
        parabola = _fit(chosen)
        vertex = _vertex(parabola, sign)
        if vertex is not None and low < vertex < high:
            return WidthOptimum(width, vertex, metric, False, parabola, (chosen[0][0], chosen[-1][0]))
    return WidthOptimum(width, rate, metric, True, None, None)


def _near(curve: Curve, place: int, count: int) -> Curve:
    """Return the points nearest the best, without those that diverged if three remain."""
    rate, metric = curve[place]
    near = sorted(curve, key=lambda point: abs(math.log2(point[0] / rate)))[:count]
    far = DIVERGED * statistics.median(abs(value - metric) for _, value in near)
    close = [point for point in near if abs(point[1] - metric) <= far]
    return sorted(close if len(close) >= 3 else near)


def _fit(curve: Curve) -> Parabola:
    import numpy as np

    rates, metrics = zip(*curve, strict=True)
    square, linear, constant = np.polyfit(np.log2(rates), metrics, 2)
    return float(square), float(linear), float(constant)


def _vertex(parabola: Parabola, sign: int) -> float | None:
    """Return the rate at the parabola's best value, or None if it opens the wrong way."""
    square, linear, _ = parabola
    octaves = -linear / (2 * square) if sign * square > 0 else math.inf
    return float(2**octaves) if abs(octaves) < 1000 else None


def _slope(optima: Sequence[WidthOptimum]) -> float:
    rates = [math.log2(optimum.lr) for optimum in optima]
    return statistics.linear_regression([math.log2(optimum.width) for optimum in optima], rates).slope


def _drift(optima: Sequence[WidthOptimum], slope: float) -> Drift:
    rates = [math.log2(optimum.lr) for optimum in optima]
    spread = max(abs(rate - statistics.fmean(rates)) for rate in rates)
    if sum(not optimum.at_edge for optimum in optima) < 2:
        return "unclear"
    if spread <= STABLE_OCTAVES and abs(slope) < STABLE_SLOPE:
        return "stable"
    moved = abs(slope) * math.log2(optima[-1].width / optima[0].width)
    return "drifts" if moved >= 1.0 else "unclear"
