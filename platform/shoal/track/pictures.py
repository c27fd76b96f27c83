"""What a person would rather look at than read: the loss curve and the confusion matrix, as PNG bytes."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Curve = Sequence[tuple[int, float]]
MAX_CLASSES = 50


def loss_curve(curves: Mapping[str, Curve], title: str) -> bytes:
    """Draw losses over optimiser steps; a dense training loss is drawn faint with its running mean over it."""
    figure, axes = _figure(title)
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
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.3)
    axes.legend()
    return _png(figure)


def confusion_matrix(counts: np.ndarray, classes: Sequence[Any], title: str) -> bytes:
    """Draw [true class, predicted class] counts, shaded by the share of the true class."""
    figure, axes = _figure(title, side=max(4.5, min(12.0, 0.5 * len(classes) + 2)))
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
    return _png(figure)


def _figure(title: str, side: float | None = None) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(side, side) if side else (8, 4.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title)
    return figure, axes


def _panels(title: str, rows: int, columns: int, shared: str = "row") -> tuple[Any, Any]:
    """Return a figure and its axes as an array [rows, columns].

    Args:
        shared: which axes have one scale upwards: "row" or "none".
    """
    figure, axes = _figure(title)
    axes.remove()
    figure.suptitle(title)
    figure.set_size_inches(max(8.0, 3.2 * columns + 1.0), max(4.5, 2.8 * rows))
    return figure, figure.subplots(rows, columns, squeeze=False, sharey=shared)


def _png(figure: Any) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()
