"""Losses over optimizer steps as a picture."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from shoal.plots.figure import new_figure, to_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Curve = Sequence[tuple[int, float]]


def loss_curve(curves: Mapping[str, Curve], title: str, workers: Curve = ()) -> bytes:
    """Return the PNG of `loss_figure`."""
    return to_png(loss_figure(curves, title, workers))


def loss_figure(curves: Mapping[str, Curve], title: str, workers: Curve = ()) -> "Figure":
    """Draw losses over optimizer steps; a dense training loss is drawn faint with its running mean over it.

    Args:
        workers: how many there were, where their number changed: a line marks each change.
    """
    figure, axes = new_figure(title)
    for name, points in curves.items():
        steps, values = np.array([step for step, _ in points]), np.array([value for _, value in points])
        if name.startswith("train/") and len(points) > 50:
            window = max(5, len(points) // 50)
            smooth = np.convolve(values, np.ones(window) / window, mode="valid")
            axes.plot(steps, values, color="tab:blue", alpha=0.25, linewidth=0.8)
            axes.plot(steps[window - 1 :], smooth, color="tab:blue", label=f"{name} (mean of {window})")
        else:
            axes.plot(steps, values, marker="o" if len(points) < 50 else None, markersize=3, label=name)
    positive = [value for points in curves.values() for _, value in points if value > 0]
    if positive and max(positive) > 20 * min(positive):
        axes.set_yscale("log")
    for (_, before), (step, now) in pairwise(workers):
        if now != before:
            axes.axvline(step, color="gray", linestyle=":", linewidth=1)
            axes.annotate(
                f"{now:g} worker{'s' * (now != 1)}",
                (step, 0),
                xycoords=("data", "axes fraction"),
                rotation=90,
                fontsize=7,
                va="bottom",
            )
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper right")  # "best" looks at each point, and says so where there are many
    return figure
