"""Boxes of objects in images, each of a class: focal loss of the classes, generalized overlap of the boxes.

The loss is that of Tian et al. 2019, "FCOS" (sections 3.1 and 4.1.3, without centre-ness), divided by the boxes of the
global batch.
"""

from dataclasses import replace
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from shoal.data.augment import augment_with_boxes
from shoal.data.config import DataConfig
from shoal.data.loader import Batch
from shoal.data.preprocessing import Transform
from shoal.data.sampler import Indices
from shoal.data.tree import only_tensor
from shoal.errors import ModelError
from shoal.tasks.average_precision import LIBRARY, MOST, AveragePrecision
from shoal.tasks.base import RowTerms, Task
from shoal.tasks.boxes import Found, are_boxes, assign, boxes_of, centres, find_boxes, generalized_overlap
from shoal.tasks.image_classification import Augmented
from shoal.tasks.metrics import AVERAGE_PRECISION as NAME
from shoal.tasks.outputs import logits_of

ALPHA, GAMMA = 0.25, 2.0  # of the focal loss (Lin et al. 2017, table 1)
LEAST_SCORE, MOST_OVERLAP = 0.05, 0.6  # of boxes that are found


class ObjectDetection(Task):
    """A box and a class for each object of an image."""

    name = "object_detection"
    metric_names = ("loss", NAME, f"{NAME}_50", f"{NAME}_75")
    keeps_targets = True
    takes_boxes = True
    libraries = (LIBRARY,)
    counts_terms = True
    sums_size = 3

    def __init__(self, classes: tuple[Any, ...], size: tuple[int, int], view: "AugmentedBoxes | None" = None):
        """Take the classes, and the height and width of the images."""
        self.classes, self._size, self.view = classes, size, view
        self.measures = (AveragePrecision([str(name) for name in classes], self.found),)

    @classmethod
    def build(cls, transform: Transform, data: DataConfig, seed: int) -> Self:
        _, height, width = transform.input_shape
        return cls(transform.label.classes, (height, width), AugmentedBoxes(data.flip, data.pad, seed))

    def terms(self, batch: Batch) -> Tensor:
        return are_boxes(only_tensor(batch.targets)).sum().double()

    def own_total(self, outputs: Tensor, batch: Batch) -> Tensor:
        return self.own_losses(outputs, batch).sum()

    def own_losses(self, outputs: Tensor, batch: Batch) -> Tensor:
        targets = only_tensor(batch.targets)
        self._check(outputs, len(targets))
        # In float64, as of other tasks: the noise of float32 would differ between worker counts.
        logits, sides = outputs.double().flatten(2).split([len(self.classes), 4], dim=1)
        height, width = outputs.shape[2:]
        middle, stride = centres(height, width, self.stride(outputs), outputs.device), self.stride(outputs)
        todo = assign(targets, middle, stride)
        expected = torch.zeros_like(logits)
        expected[todo.images, todo.classes, todo.cells] = 1.0
        found = boxes_of(sides[todo.images, :, todo.cells], middle[todo.cells], stride)
        of_boxes = torch.zeros(len(targets), dtype=torch.float64, device=outputs.device)
        of_boxes = of_boxes.index_add(0, todo.images, 1 - generalized_overlap(found, todo.boxes))
        return focal_loss(logits, expected).sum(dim=(1, 2)) + of_boxes

    def stride(self, outputs: Tensor) -> float:
        """Return how many pixels there are between two cells."""
        return float(round(self._size[0] / outputs.shape[2]))

    def _check(self, outputs: Tensor, rows: int) -> None:
        channels = len(self.classes) + 4
        if outputs.ndim != 4 or outputs.shape[:2] != (rows, channels):
            raise ModelError(
                f"the model returned {tuple(outputs.shape)} for {rows} images of {len(self.classes)} classes: "
                f"task=object_detection takes {(rows, channels, 'height', 'width')}, as model.name=detector returns"
            )

    def found(self, outputs: Any) -> Found:
        """Return the boxes that outputs mean, in pixels."""
        outputs = logits_of(outputs)
        return find_boxes(outputs, self._size, self.stride(outputs), LEAST_SCORE, MOST_OVERLAP, MOST)

    def own_sums(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Return rows, loss, boxes."""
        loss = self.own_total(outputs, batch)
        return torch.stack([loss.new_tensor(float(len(outputs))), loss, self.terms(batch)])

    def own_metrics(self, sums: Tensor) -> dict[str, float]:
        _, loss, boxes = sums.tolist()
        return {"loss": loss / max(boxes, 1.0)}

    def own_row_terms(self, outputs: Tensor, batch: Batch) -> dict[str, RowTerms]:
        counts = are_boxes(only_tensor(batch.targets)).sum(dim=1).double()
        return {"loss": RowTerms(self.own_losses(outputs, batch), counts)}


def focal_loss(logits: Tensor, expected: Tensor) -> Tensor:
    """Return the focal loss of each logit (Lin et al. 2017, "Focal Loss for Dense Object Detection", equation 5)."""
    entropy = F.binary_cross_entropy_with_logits(logits, expected, reduction="none")
    probability = logits.sigmoid()
    wrong = probability + expected - 2 * probability * expected
    return (ALPHA * expected + (1 - ALPHA) * (1 - expected)) * wrong**GAMMA * entropy


class AugmentedBoxes(Augmented):
    """Views of images and their boxes in training: mirrored and shifted, by their content, the epoch and the seed."""

    def viewed(self, batch: Batch, images: Tensor, keys: Indices, epoch: int) -> Batch:
        boxes = only_tensor(batch.targets)
        images, boxes = augment_with_boxes(images, boxes, keys, epoch, self.seed, self.flip, self.pad)
        return replace(batch, inputs=images, targets=boxes)
