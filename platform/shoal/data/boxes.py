"""Boxes of objects in images: a row [class, left, top, right, bottom] each, in pixels.

It knows numbers; independent of the formats that annotations are written in, and of tensors.
"""

CLASS_AND_BOX = 5  # numbers of a row


def box_row(number: int, left: float, top: float, right: float, bottom: float) -> list[float]:
    return [float(number), left, top, right, bottom]
