"""Boxes in plain torch: which cells of a detector's output are to find them, overlaps, the best that are found.

A box is (left, top, right, bottom), in pixels. Depends on torch alone; independent of models, metrics and files.
"""

from typing import NamedTuple

import torch
from torch import Tensor

RADIUS = (
    1.5  # in cells: how far from the centre of a box the cells are that are to find it (FCOS, section 4.1.3)
)
LARGEST = 6.0  # of the logarithm of a side's distance in cells, beyond which it does not grow
CANDIDATES = 200  # of an image, by score, from which overlapping ones are dropped
IMAGES = 16  # that are looked at at a time: their candidates are compared in pairs


class Assigned(NamedTuple):
    """What cells are to find: the box and its class of each.

    Attributes:
        images: [m] number of the cell's image.
        cells: [m] number of the cell, row by row.
        classes: [m].
        boxes: [m, 4].
    """

    images: Tensor
    cells: Tensor
    classes: Tensor
    boxes: Tensor


class Found(NamedTuple):
    """The best boxes of each image, the best first; those with a score of 0 are none.

    Attributes:
        boxes: [n, most, 4].
        scores: [n, most].
        classes: [n, most].
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor


def are_boxes(targets: Tensor) -> Tensor:
    """Return which rows [n, most] of targets [n, most, 5], (class, box), are boxes and not padding of zeros."""
    return targets[..., 3] > targets[..., 1]


def centres(height: int, width: int, stride: float, device: torch.device) -> Tensor:
    """Return the centres (x, y) of cells [height * width, 2], row by row, in pixels."""
    y, x = torch.meshgrid(
        torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij"
    )
    return (torch.stack([x, y], dim=-1).reshape(-1, 2).double() + 0.5) * stride


def boxes_of(logarithms: Tensor, middle: Tensor, stride: float) -> Tensor:
    """Return boxes [..., 4] of the logarithms [..., 4] of their sides' distances in cells from centres [..., 2]."""
    distances = logarithms.clamp(max=LARGEST).exp() * stride
    return torch.cat([middle - distances[..., :2], middle + distances[..., 2:]], dim=-1)


def assign(targets: Tensor, middle: Tensor, stride: float) -> Assigned:
    """Return the cells that are to find boxes: those within `RADIUS` of the centre of a box, and inside of it.

    The cell that holds the centre is one of them, however small the box is. Where a cell could find several boxes, it
    is to find the smallest.

    Args:
        targets: [n, most, 5], class and box, padded with zeros.
        middle: [cells, 2] as `centres` returns them.
    """
    boxes = targets[:, None, :, 1:].double()  # [n, 1, most, 4]
    x, y = middle[None, :, None, 0], middle[None, :, None, 1]
    left, top, right, bottom = boxes.unbind(-1)
    far = torch.maximum((x - (left + right) / 2).abs(), (y - (top + bottom) / 2).abs()) / stride
    inside = (x > left) & (x < right) & (y > top) & (y < bottom)
    holds = (inside & (far < RADIUS)) | (far <= 0.5)
    area = ((right - left) * (bottom - top)).expand_as(far)
    area = area.masked_fill(~(holds & are_boxes(targets)[:, None]), torch.inf)
    smallest, which = area.min(dim=2)
    images, cells = smallest.isfinite().nonzero(as_tuple=True)
    chosen = targets[images, which[images, cells]]
    return Assigned(images, cells, chosen[:, 0].long(), chosen[:, 1:].double())


def areas(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def overlaps(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Return the intersection over union of boxes [..., 4], and their unions."""
    sides = torch.minimum(one[..., 2:], other[..., 2:]) - torch.maximum(one[..., :2], other[..., :2])
    common = sides.clamp(min=0).prod(dim=-1)
    union = areas(one) + areas(other) - common
    return common / union.clamp(min=1e-9), union


def generalized_overlap(one: Tensor, other: Tensor) -> Tensor:
    """Return the generalized intersection over union [m] of boxes [m, 4] (Rezatofighi et al. 2019, algorithm 1)."""
    share, union = overlaps(one, other)
    sides = torch.maximum(one[:, 2:], other[:, 2:]) - torch.minimum(one[:, :2], other[:, :2])
    hull = sides.prod(dim=1).clamp(min=1e-9)
    return share - (hull - union) / hull


def suppressed(boxes: Tensor, classes: Tensor, most: float) -> Tensor:
    """Return which boxes [n, k] of one class overlap a better one that is kept by more than `most`; the best first.

    Greedy suppression is the fixed point of "dropped is what a kept better one overlaps": in each pass at least one
    more box is decided for good, from the best on.
    """
    share, _ = overlaps(boxes[:, :, None], boxes[:, None])
    rivals = (share > most) & (classes[:, :, None] == classes[:, None])
    rivals = rivals.triu(diagonal=1)  # [n, better, worse]
    dropped = torch.zeros_like(classes, dtype=torch.bool)
    while True:
        again = (rivals & ~dropped[:, :, None]).any(dim=1)
        if bool((again == dropped).all()):
            return dropped
        dropped = again


def find_boxes(
    outputs: Tensor, size: tuple[int, int], stride: float, least_score: float, most_overlap: float, most: int
) -> Found:
    """Return the best boxes of a detector's outputs, without those that overlap a better one of their class.

    Args:
        outputs: [n, classes + 4, height, width].
        size: (height, width) of the images, at whose edges boxes end.
        stride: pixels between cells.
        least_score: of a box.
        most_overlap: of two boxes of one class.
        most: boxes of an image.
    """
    parts = [_found(some, size, stride, least_score, most_overlap, most) for some in outputs.split(IMAGES)]
    return Found(*(torch.cat(found) for found in zip(*parts, strict=True)))


def _found(
    outputs: Tensor, size: tuple[int, int], stride: float, least_score: float, most_overlap: float, most: int
) -> Found:
    outputs = outputs.double()
    classes, (height, width) = outputs.shape[1] - 4, outputs.shape[2:]
    logits, sides = outputs.flatten(2).split([classes, 4], dim=1)
    scores = logits.sigmoid().flatten(1)
    fewest = min(most, scores.shape[1])  # as many for any images
    candidates = int((scores >= least_score).sum(dim=1).max().clamp(fewest, max(fewest, CANDIDATES)))
    scores, order = scores.topk(candidates, dim=1)
    kinds, cells = order // (height * width), order % (height * width)
    middle = centres(height, width, stride, outputs.device)[cells]
    boxes = boxes_of(sides.gather(2, cells[:, None].expand(-1, 4, -1)).transpose(1, 2), middle, stride)
    limits = boxes.new_tensor([size[1], size[0], size[1], size[0]])
    boxes = torch.minimum(boxes.clamp(min=0), limits)
    is_found = (scores >= least_score) & (areas(boxes) > 0)
    boxes = boxes * is_found[..., None]  # what is none overlaps none
    is_found &= ~suppressed(boxes, kinds, most_overlap)
    scores, best = (scores * is_found).topk(fewest, dim=1)
    return Found(boxes.gather(1, best[..., None].expand(-1, -1, 4)), scores, kinds.gather(1, best))
