"""The confusion matrix as a picture."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from shoal.plots.figure import new_figure, to_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_CLASSES = 50


def confusion_matrix(counts: np.ndarray, classes: Sequence[Any], title: str) -> bytes:
    """Return the PNG of `confusion_figure`."""
    return to_png(confusion_figure(counts, classes, title))


def confusion_figure(counts: np.ndarray, classes: Sequence[Any], title: str) -> "Figure":
    """Draw [true class, predicted class] counts, shaded by the share of the true class.

    Up to 50 classes are named, and up to 25 have their counts written in.
    """
    figure, axes = new_figure(title, side=max(4.5, min(12.0, 0.5 * len(classes) + 2)))
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(classes) <= MAX_CLASSES:
        axes.set_xticks(range(len(classes)), [str(name) for name in classes], rotation=45, ha="right")
        axes.set_yticks(range(len(classes)), [str(name) for name in classes])
    if len(classes) <= MAX_CLASSES // 2:
        for row, column in np.ndindex(counts.shape):
            if counts[row, column]:
                color = "white" if shares[row, column] > 0.5 else "black"
                axes.text(
                    column, row, str(counts[row, column]), ha="center", va="center", color=color, fontsize=8
                )
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    return figure
