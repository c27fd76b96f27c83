"""What compression costs and gains as a picture: a metric over bytes and over latency."""

from collections.abc import Sequence
from typing import NamedTuple

from shoal.plots.figure import new_panels, to_png


class TradeOff(NamedTuple):
    """A model as a point of the picture; `metric` is what the vertical axis shows."""

    name: str
    bytes: int
    latency_ms: float
    metric: float


def trade_off(
    points: Sequence[TradeOff], metric: str, higher_is_better: bool, batch: int, title: str
) -> bytes:
    """Return a PNG with a panel for bytes and one for latency, each with the Pareto front as a line.

    Args:
        metric: its name.
        batch: rows of a call whose latency is shown.
    """
    figure, [panels] = new_panels(title, rows=1, columns=2)
    costs = (
        ("kB of weights", [point.bytes / 1000 for point in points]),
        (f"p50 of {batch} rows, ms", [point.latency_ms for point in points]),
    )
    for axes, (label, values) in zip(panels, costs, strict=True):
        metrics = [point.metric for point in points]
        for value, point in zip(values, points, strict=True):
            axes.scatter([value], [point.metric], label=point.name, zorder=2)
        front = pareto_front(list(zip(values, metrics, strict=True)), higher_is_better)
        axes.plot(*zip(*front, strict=True), color="gray", linewidth=0.8, zorder=1)
        axes.set_xlabel(label)
        axes.set_ylabel(metric)
        axes.margins(0.2)
        axes.grid(alpha=0.3)
    # Beside the panels: names at the points would lie on each other where models are alike.
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)
    return to_png(figure)


def pareto_front(points: Sequence[tuple[float, float]], higher_is_better: bool) -> list[tuple[float, float]]:
    """Return the (cost, metric) points that no other beats in both, by rising cost."""
    sign = 1.0 if higher_is_better else -1.0
    front: list[tuple[float, float]] = []
    for cost, metric in sorted(points, key=lambda point: (point[0], -sign * point[1])):
        if not front or sign * metric > sign * front[-1][1]:
            front.append((cost, metric))
    return front
