"""A sweep as figures, or None where its trials cannot make one.

It depends on rows of trials, not on where they come from or where the figures go. Bright is good in every colour
scale; scales end at `trials.limits`, so a diverged trial lies at their end instead of stretching them.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from shoal.plots.figure import new_figure
from shoal.storage.records import TrialRow
from shoal.tune.trials import LOG_SPAN, Mode, cells, is_log, is_number, limits, plain, ranked, varying

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_SIDE = 24  # cells along a side of a matrix
MAX_WRITTEN = 120  # cells whose values can be written in
MAX_NAMED = 8  # values of a param that are all named on its axis
TOP = 5  # trials whose curves have a colour and a name
UNSET = -0.12  # where a param that a trial lacks is drawn, below its axis from 0 to 1
UNITS = ((3600.0, "hours"), (60.0, "minutes"), (1.0, "seconds"))

Cell = tuple[Any, ...]


def heatmap(rows: Sequence[TrialRow], x: str, y: str, metric: str, mode: Mode) -> "Figure | None":
    """Draw the metric over two params: a matrix of a full grid's cells, else a dot per tried pair.

    Each is the mean over seeds, the best over other params. The best is framed, infeasible ones are crossed.
    None unless both params vary.
    """
    paired = [row for row in rows if x in row.params and y in row.params]
    tried = {_cell(row, x, y) for row in paired}
    values = cells(paired, (x, y), mode)
    across, up = ParamAxis.of(x, [cell[0] for cell in tried]), ParamAxis.of(y, [cell[1] for cell in tried])
    if min(len(across.values), len(up.values)) < 2 or not values:
        return None
    is_full = len(tried) == len(across.values) * len(up.values)
    is_small = max(len(across.values), len(up.values)) <= MAX_SIDE
    figure, axes = new_figure(f"{metric} by {x} and {y}")
    colors = _colors(list(values.values()), mode)
    best = (min if mode == "min" else max)(values, key=lambda cell: values[cell])
    crossed = {_cell(row, x, y) for row in paired if row.status == "infeasible"} - values.keys()
    pairs = _Pairs(across, up, values, best, crossed)
    (_matrix if is_full and is_small else _scatter)(axes, pairs, colors)
    if crossed:
        figure.legend(loc="outside lower right", fontsize=8)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    figure.colorbar(colors, ax=axes, label=metric, extend=_beyond(list(values.values()), mode))
    return figure


def learning_curves(rows: Sequence[TrialRow], metric: str, mode: Mode) -> "Figure | None":
    """Draw the metric over optimizer steps: the five best trials in colour, all others faint."""
    curves = {row.number: [point for point in row.curve if math.isfinite(point[1])] for row in rows}
    drawn = [row for row in rows if curves[row.number]]
    if not drawn:
        return None
    figure, axes = new_figure(f"{metric} of each trial")
    top = ranked(drawn, mode)[:TOP]
    for row in drawn:
        if row not in top:
            axes.plot(*zip(*curves[row.number], strict=True), color="gray", alpha=0.35, linewidth=0.8)
    for place, row in enumerate(top):
        style = {"color": f"C{place}", "linewidth": 2.4 if place == 0 else 1.2, "zorder": 3 + TOP - place}
        label = f"{row.name}  {row.metric:.4g}"
        axes.plot(*zip(*curves[row.number], strict=True), marker=".", label=label, **style)
    _fit_metric(axes, *_span([[value for _, value in curves[row.number]] for row in drawn], mode))
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(metric)
    if top:
        figure.legend(loc="outside right upper", title="best", fontsize=8, title_fontsize=8)
    return figure


def parallel_coordinates(rows: Sequence[TrialRow], metric: str, mode: Mode) -> "Figure | None":
    """Draw each ranked trial as a line across an axis per varying param, coloured by its metric.

    A param that a trial does not have is drawn below its axis. None unless two params vary.
    """
    done = ranked(rows, mode)
    keys = varying(done)
    if len(keys) < 2:
        return None
    values = _metrics(done)
    clipped = np.clip(values, *limits(values, mode)).tolist()
    scales = [ParamAxis.of(key, [row.params[key] for row in done if key in row.params]) for key in keys]
    last, colors = ParamAxis.of(metric, clipped), _colors(values, mode)
    figure, axes = new_figure(f"{len(done)} trials, coloured by {metric}")
    figure.set_size_inches(max(8.0, 1.4 * (len(keys) + 1)), 5)
    for row, value in reversed(list(zip(done, clipped, strict=True))):
        point = row.params
        heights = [scale.share(point[scale.key]) if scale.key in point else UNSET for scale in scales]
        style = {"linewidth": 3.0} if row is done[0] else {"linewidth": 1.1, "alpha": 0.6}
        axes.plot([*heights, last.share(value)], color=colors.to_rgba(value), **style)
    for place, scale in enumerate([*scales, last]):
        _upright(axes, place, scale)
        if scale is not last and any(scale.key not in row.params for row in done):
            _note(axes, place, UNSET, "unset")
    axes.set_xticks(range(len(keys) + 1), [*map(_two_lines, keys), metric], fontsize=9)
    axes.set_yticks([])
    axes.set_xlim(-0.5, len(keys) + 0.3)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return figure


def importance_bars(shares: Mapping[str, float], metric: str) -> "Figure | None":
    """Draw each param's share of the metric's variance, largest on top; None when there are none."""
    if not shares:
        return None
    figure, axes = new_figure(f"What {metric} depends on")
    figure.set_size_inches(8, 1.4 + 0.4 * len(shares))
    ordered = sorted(shares.items(), key=lambda pair: pair[1])
    bars = axes.barh([key for key, _ in ordered], [100 * share for _, share in ordered], color="tab:blue")
    axes.bar_label(bars, fmt="%.0f%%", padding=4)
    axes.set_xlim(0, 112 * max(shares.values()))
    axes.set_xlabel("share of the variance, %")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def best_over_trials(rows: Sequence[TrialRow], metric: str, mode: Mode) -> "Figure | None":
    """Draw each ranked trial by its number, and the best so far; None with fewer than two."""
    found = [(float(row.number), row) for row in ranked(rows, mode)]
    return _best_so_far(found, "trial", metric, mode)


def best_over_time(rows: Sequence[TrialRow], metric: str, mode: Mode) -> "Figure | None":
    """Draw each ranked trial by when it ended, and the best so far; None with fewer than two."""
    ended = [(row.ended_s, row) for row in ranked(rows, mode) if row.ended_s is not None]
    longest = max((seconds for seconds, _ in ended), default=0.0)
    unit, name = next((unit for unit in UNITS if longest > 3 * unit[0]), UNITS[-1])
    found = [(seconds / unit, row) for seconds, row in ended]
    return _best_so_far(found, f"{name} since the sweep began", metric, mode)


@dataclass(frozen=True)
class ParamAxis:
    """How the values of one param lie along an axis: numbers to scale, anything else evenly spaced."""

    key: str
    values: tuple[Any, ...]
    is_numeric: bool
    is_log: bool

    @classmethod
    def of(cls, key: str, found: Iterable[Any]) -> "ParamAxis":
        values = sorted({plain(value) for value in found}, key=_order)
        is_numeric = all(map(is_number, values))
        return cls(key, tuple(values), is_numeric, is_numeric and is_log(values))

    def at(self, value: Any) -> float:
        return float(value) if self.is_numeric else float(self.values.index(plain(value)))

    def share(self, value: Any) -> float:
        """Where a value lies between the first (0) and the last (1)."""
        scale: Callable[[float], float] = math.log if self.is_log else float
        low, here, high = (scale(self.at(one)) for one in (self.values[0], value, self.values[-1]))
        return (here - low) / (high - low) if high > low else 0.5

    def named(self) -> list[Any]:
        """The values to name: all of a few, else five evenly spaced."""
        if len(self.values) <= MAX_NAMED or not self.is_numeric:
            return list(self.values)
        space = np.geomspace if self.is_log else np.linspace
        return [float(value) for value in space(self.values[0], self.values[-1], 5)]


@dataclass(frozen=True)
class _Pairs:
    """What a heatmap shows: the metric by the values of two params."""

    across: ParamAxis
    up: ParamAxis
    values: Mapping[Cell, float]
    best: Cell
    crossed: Iterable[Cell]


def _matrix(axes: Any, pairs: _Pairs, colors: Any) -> None:
    from matplotlib.patches import Rectangle

    columns, lines = pairs.across.values, pairs.up.values
    grid = np.array([[pairs.values.get((column, line), math.nan) for column in columns] for line in lines])
    axes.imshow(grid, cmap=colors.cmap, norm=colors.norm, origin="lower", aspect="auto")
    axes.set_xticks(range(len(columns)), [_label(value) for value in columns], rotation=_tilt(columns))
    axes.set_yticks(range(len(lines)), [_label(value) for value in lines])
    if grid.size <= MAX_WRITTEN:
        for line, column in np.argwhere(np.isfinite(grid)):
            _write(axes, column, line, grid[line, column], colors)
    corner = columns.index(pairs.best[0]) - 0.5, lines.index(pairs.best[1]) - 0.5
    axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="tab:red", linewidth=2.5, clip_on=False))
    _cross(axes, [(columns.index(x), lines.index(y)) for x, y in pairs.crossed])


def _scatter(axes: Any, pairs: _Pairs, colors: Any) -> None:
    def place(cell: Cell) -> tuple[float, float]:
        return pairs.across.at(cell[0]), pairs.up.at(cell[1])

    shades = colors.to_rgba(list(pairs.values.values()))
    dots = {"s": 60, "edgecolors": "gray", "linewidths": 0.5, "zorder": 3}
    axes.scatter(*zip(*map(place, pairs.values), strict=True), color=shades, **dots)
    axes.scatter(*place(pairs.best), s=160, facecolors="none", edgecolors="tab:red", linewidths=2, zorder=4)
    _cross(axes, [place(cell) for cell in pairs.crossed])
    _lay(axes, "x", pairs.across)
    _lay(axes, "y", pairs.up)
    axes.grid(alpha=0.3)


def _cross(axes: Any, places: Sequence[tuple[float, float]]) -> None:
    if places:
        axes.scatter(*zip(*places, strict=True), marker="x", s=60, color="tab:red", label="infeasible")


def _write(axes: Any, column: int, line: int, value: float, colors: Any) -> None:
    brightness = np.dot(colors.to_rgba(value)[:3], (0.3, 0.6, 0.1))
    style = {"color": "white" if brightness < 0.5 else "black", "fontsize": 8}
    axes.text(column, line, f"{value:.3g}", ha="center", va="center", **style)


def _lay(axes: Any, side: str, axis: ParamAxis) -> None:
    """Give the x or y side of a plot the scale and the ticks of a param."""
    if axis.is_log:
        axes.set(**{f"{side}scale": "log"})
    if len(axis.values) <= MAX_NAMED or not axis.is_numeric:
        ticks = [axis.at(value) for value in axis.values]
        axes.set(**{f"{side}ticks": ticks, f"{side}ticklabels": [_label(value) for value in axis.values]})
        getattr(axes, f"{side}axis").set_ticks([], minor=True)
    elif axis.is_log:
        _name_decades(getattr(axes, f"{side}axis"), axis.values[-1] / axis.values[0])


def _name_decades(side: Any, span: float) -> None:
    """Ticks of a log axis in plain numbers; 1, 2 and 5 of each decade where there are few."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    side.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if span < 1000 else (1.0,)))
    side.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    side.set_minor_formatter(NullFormatter())


def _upright(axes: Any, place: int, scale: ParamAxis) -> None:
    """One upright axis of parallel coordinates, with its values."""
    axes.plot([place, place], [0, 1], color="black", linewidth=1, zorder=4)
    for value in scale.named():
        _note(axes, place, scale.share(value), _label(value))


def _note(axes: Any, place: int, height: float, text: str) -> None:
    box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8}
    axes.text(place - 0.05, height, text, ha="right", va="center", fontsize=8, bbox=box, zorder=5)


def _best_so_far(
    found: Sequence[tuple[float, TrialRow]], place: str, metric: str, mode: Mode
) -> "Figure | None":
    if len(found) < 2:
        return None
    found = sorted(found, key=lambda pair: pair[0])
    at, values = np.array([where for where, _ in found]), np.array(_metrics(row for _, row in found))
    early = np.array([row.status == "stopped" for _, row in found])
    low, high = limits(values.tolist(), mode)
    inside = (values >= low) & (values <= high)
    figure, axes = new_figure(f"Best {metric} so far")
    for mask, style in (
        (inside & ~early, {"color": "tab:blue", "label": "ran to its end"}),
        (inside & early, {"facecolors": "white", "edgecolors": "tab:blue", "label": "stopped early"}),
        (~inside, {"color": "gray", "marker": "^" if mode == "min" else "v", "label": "beyond the axis"}),
    ):
        if mask.any():
            axes.scatter(at[mask], values[mask].clip(low, high), s=24, zorder=3, **style)
    so_far = (np.minimum if mode == "min" else np.maximum).accumulate(values).clip(low, high)
    axes.step(at, so_far, where="post", color="tab:orange", linewidth=2, label="best so far")
    _fit_metric(axes, low, high)
    axes.set_xlabel(place)
    axes.set_ylabel(metric)
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


def _fit_metric(axes: Any, low: float, high: float) -> None:
    """Let the metric's axis end a little beyond its limits; logarithmic over a long span."""
    axes.grid(alpha=0.3)
    if low > 0 and high > LOG_SPAN * low:
        axes.set_yscale("log")
        axes.set_ylim(low / 1.2, high * 1.2)
        _name_decades(axes.yaxis, high / low)
    elif high > low:
        axes.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))


def _span(curves: Sequence[Sequence[float]], mode: Mode) -> tuple[float, float]:
    """The metrics worth showing of some curves: from the best of all to a bad end that most stay within."""
    worst = limits([(max if mode == "min" else min)(curve) for curve in curves], mode)
    every = [value for curve in curves for value in curve]
    return (min(every), worst[1]) if mode == "min" else (worst[0], max(every))


def _colors(values: Sequence[float], mode: Mode) -> Any:
    """The colour scale of a metric, bright where it is good."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    return ScalarMappable(Normalize(*limits(values, mode)), "viridis_r" if mode == "min" else "viridis")


def _beyond(values: Sequence[float], mode: Mode) -> str:
    """The end of the colour bar that goes on beyond the scale."""
    low, high = limits(values, mode)
    return "max" if max(values) > high else "min" if min(values) < low else "neither"


def _cell(row: TrialRow, x: str, y: str) -> Cell:
    return plain(row.params[x]), plain(row.params[y])


def _metrics(rows: Iterable[TrialRow]) -> list[float]:
    return [row.metric for row in rows if row.metric is not None]


def _order(value: Any) -> tuple[bool, float, str]:
    """Numbers first, by size; then text."""
    return not is_number(value), value if is_number(value) else 0.0, str(value)


def _label(value: Any) -> str:
    if is_number(value):
        return f"{value:g}" if value == int(value) else f"{value:.3g}"
    text = str(value)
    return text if len(text) <= 20 else text[:19] + "…"


def _tilt(values: Sequence[Any]) -> int:
    return 45 if sum(len(_label(value)) for value in values) > 70 else 0


def _two_lines(key: str) -> str:
    section, _, leaf = key.rpartition(".")
    return f"{section}.\n{leaf}" if section else leaf
