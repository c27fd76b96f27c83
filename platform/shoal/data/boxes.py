"""Boxes of objects in images, as annotations have them, and as rows [class, left, top, right, bottom] in pixels.

What annotations have that is no box is counted and named. It knows numbers and names; independent of the formats that
annotations are written in, of files and of tensors.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from shoal.errors import DataError

CLASS_AND_BOX = 5  # numbers of a row
# Formats write the same box in other numbers: YOLO as shares of six digits. To this many digits they are the same.
DIGITS = 2
NAMED = 3  # images that a line names


class Size(NamedTuple):
    """Of an image, in pixels."""

    height: int
    width: int


class Box(NamedTuple):
    """An object of an image: its class by name, and its sides in pixels of the image as it is stored."""

    label: str
    left: float
    top: float
    right: float
    bottom: float


@dataclass
class Dropped:
    """Boxes that are left out, by what is wrong with them: how many, and in which images."""

    images: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, image: str) -> None:
        self.images.setdefault(reason, []).append(image)

    def notes(self) -> tuple[str, ...]:
        """Return a line for each reason."""
        return tuple(
            f"{len(found)} {'box is' if len(found) == 1 else 'boxes are'} left out: {reason} ({_some(found)})"
            for reason, found in self.images.items()
        )


def _some(images: Sequence[str]) -> str:
    names = list(dict.fromkeys(images))
    more = f" and {len(names) - NAMED} more images" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def box_row(number: int, left: float, top: float, right: float, bottom: float) -> list[float]:
    return [float(number), left, top, right, bottom]


def usable(boxes: Iterable[Box], size: Size, image: str, dropped: Dropped) -> list[Box]:
    """Return the boxes of an image that have an area inside of it, cut at its edges; the others are counted."""
    found = []
    for box in boxes:
        sides = box[1:]
        if not all(map(math.isfinite, sides)):
            dropped.add("a number of it is NaN or infinite", image)
            continue
        left, top, right, bottom = (round(side, DIGITS) for side in sides)
        if right <= left or bottom <= top:
            dropped.add("its width or height is 0 or less", image)
            continue
        cut = Box(box.label, max(left, 0.0), max(top, 0.0), min(right, size.width), min(bottom, size.height))
        if cut.right <= cut.left or cut.bottom <= cut.top:
            dropped.add("it is outside of its image", image)
            continue
        found.append(cut)
    return found


def rows_of(boxes: Sequence[Box], numbers: dict[str, int], size: Size, shape: Size) -> np.ndarray:
    """Return rows [k, 5] float32 of the boxes of an image that is stretched to a shape.

    Args:
        numbers: of the classes, by name.
        size: of the image.
        shape: that it is brought to.
    """
    x, y = shape.width / size.width, shape.height / size.height
    rows = [
        box_row(numbers[box.label], box.left * x, box.top * y, box.right * x, box.bottom * y) for box in boxes
    ]
    return np.array(rows, dtype=np.float32).reshape(-1, CLASS_AND_BOX)


def four_numbers(values: object, image: str) -> tuple[float, float, float, float]:
    """Return the numbers of a box as an annotation has them.

    Raises:
        DataError: there are not four, or one is no number.
    """
    try:
        numbers = tuple(math.nan if value is None else float(value) for value in values)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) != 4:
        raise DataError(f"image '{image}' has the box {values!r}: a box has four numbers; fix its annotation")
    return numbers[0], numbers[1], numbers[2], numbers[3]
