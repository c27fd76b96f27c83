"""What a detector finds, as pictures: boxes in images beside the true ones, and precision by recall."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from shoal.plots.figure import new_figure, new_panels, to_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 4  # images beside each other
MOST_CURVES = 20  # classes that are drawn and named


class BoxedPicture(NamedTuple):
    """An image and boxes in it.

    Attributes:
        pixels: [channels, height, width] uint8, of one channel or three.
        true: (name of the class, [left, top, right, bottom]) each.
        found: (name of the class and score, box) each.
    """

    pixels: np.ndarray
    true: Sequence[tuple[str, Sequence[float]]]
    found: Sequence[tuple[str, Sequence[float]]]


def found_boxes(pictures: Sequence[BoxedPicture], title: str) -> bytes:
    """Return the PNG of `found_figure`."""
    return to_png(found_figure(pictures, title))


def found_figure(pictures: Sequence[BoxedPicture], title: str) -> "Figure":
    """Draw images with their true boxes dashed in white, and those that were found in orange with their scores."""
    rows = -(-len(pictures) // COLUMNS)
    figure, panels = new_panels(f"{title} (true: white, found: orange)", rows, COLUMNS, shared="none")
    for place, axes in enumerate(panels.flat):
        axes.set_axis_off()
        if place < len(pictures):
            _draw(axes, pictures[place])
    return figure


def _draw(axes: Any, picture: BoxedPicture) -> None:
    from matplotlib.patches import Rectangle

    pixels = picture.pixels.transpose(1, 2, 0)
    axes.imshow(pixels[..., 0] if pixels.shape[2] == 1 else pixels, cmap="gray", vmin=0, vmax=255)
    kinds: tuple[tuple[Sequence[tuple[str, Sequence[float]]], dict[str, Any]], ...] = (
        (picture.true, {"edgecolor": "white", "linestyle": "--"}),
        (picture.found, {"edgecolor": "tab:orange"}),
    )
    for boxes, style in kinds:
        for name, (left, top, right, bottom) in boxes:
            corner = (left - 0.5, top - 0.5)  # a pixel's centre is at its number
            axes.add_patch(Rectangle(corner, right - left, bottom - top, fill=False, linewidth=1.2, **style))
            if boxes is picture.found:
                axes.text(*corner, name, color="tab:orange", fontsize=7, va="bottom", clip_on=True)


def precision_recall(curves: Mapping[str, Sequence[float]], title: str) -> bytes:
    """Return the PNG of `precision_recall_figure`."""
    return to_png(precision_recall_figure(curves, title))


def precision_recall_figure(curves: Mapping[str, Sequence[float]], title: str) -> "Figure":
    """Draw precision by recall, from 0 to 1 in equal steps, of each class at an overlap of 0.5; of many the first."""
    figure, axes = new_figure(title)
    for name, precision in list(curves.items())[:MOST_CURVES]:
        axes.plot(np.linspace(0, 1, len(precision)), precision, label=name, linewidth=1.2)
    axes.set_xlabel("recall")
    axes.set_ylabel("precision")
    axes.set_xlim(0, 1.01)
    axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left", fontsize=8, ncols=2)
    return figure
