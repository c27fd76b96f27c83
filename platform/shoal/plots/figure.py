"""Figures without a screen, and PNG bytes of them.

pyplot is not used: it keeps every figure alive until it is closed.
"""

import io
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(title: str, side: float | None = None) -> "tuple[Figure, Any]":
    """Return a matplotlib figure with a title, and its axes.

    Args:
        side: of a square figure, in inches; None: 8 by 4.5 inches.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(side, side) if side else (8, 4.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title)
    return figure, axes


def new_panels(
    title: str, rows: int, columns: int, shared: Literal["row", "none"] = "row"
) -> "tuple[Figure, Any]":
    """Return a figure and its axes as an array [rows, columns].

    Args:
        shared: which axes share their y scale: "row" or "none".
    """
    figure, axes = new_figure(title)
    axes.remove()
    figure.suptitle(title)
    figure.set_size_inches(max(8.0, 3.2 * columns + 1.0), max(4.5, 2.8 * rows))
    return figure, figure.subplots(rows, columns, squeeze=False, sharey=shared)


def to_png(figure: "Figure") -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()
