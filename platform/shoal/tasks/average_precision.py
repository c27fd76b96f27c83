"""Mean average precision as COCO defines it, of the boxes found in all images of a split, each image once.

It is no mean over images: what was found in each is kept, gathered from the workers and put into one order, which does
not depend on who found it. The library faster-coco-eval matches and counts; it is imported when there is something to
count.
"""

import contextlib
import io
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import torch

from shoal.data.loader import Batch
from shoal.data.tree import only_tensor
from shoal.tasks.boxes import Found, are_boxes
from shoal.tasks.libraries import Library
from shoal.tasks.metrics import AVERAGE_PRECISION as NAME

SIZES = (
    "small",
    "medium",
    "large",
)  # areas up to 32x32, up to 96x96 and above, in pixels of what the model takes
MOST = 100  # boxes of an image that count
IOU_50, IOU_75 = 0, 5  # of the ten overlaps from 0.5 to 0.95
MAX_CLASSES = 100  # of which each has a metric of its own
LIBRARY = Library("faster_coco_eval", "detection")


class Image(NamedTuple):
    """What is in an image, and what was found in it: float64 [k, 5], class and box; [m, 6], class, box and score."""

    truth: np.ndarray
    found: np.ndarray

    @property
    def key(self) -> tuple[bytes, bytes]:
        return self.truth.tobytes(), self.found.tobytes()


class Curves(NamedTuple):
    """Precision by recall at an overlap of 0.5, and averages, of each class that there is in the images.

    Attributes:
        precision: [101] by class, for a recall of 0, 0.01, ..., 1.
        columns: average_precision and average_precision_50 (at an overlap of 0.5), and support (the boxes that there
            are), by class.
    """

    precision: dict[str, list[float]]
    columns: dict[str, dict[str, float]]


def curves_of(measures: Sequence[Any]) -> Curves | None:
    """Return the curves of the average precision among measures; None: there is none."""
    found = next((one for one in measures if isinstance(one, AveragePrecision)), None)
    return None if found is None else found.curves()


class AveragePrecision:
    """map, map_50 and map_75; map_small, map_medium, map_large by size; map_class_NAME by class."""

    name = NAME

    def __init__(self, classes: Sequence[str], find: Callable[[Any], Found]) -> None:
        """Take the names of the classes, and what makes boxes of a model's outputs."""
        self._classes, self._find = tuple(classes), find
        self._images: list[Image] = []

    def fresh(self, device: torch.device) -> Self:
        """Return the same without images.

        Raises:
            ConfigError: the library is not there: before anything is evaluated.
        """
        LIBRARY.check("average precision")
        return type(self)(self._classes, self._find)

    def add(self, outputs: Any, batch: Batch) -> None:
        targets, found = only_tensor(batch.targets).double().cpu(), self._find(outputs)
        table = torch.cat(
            [found.classes[..., None].double(), found.boxes, found.scores[..., None]], dim=-1
        ).cpu()
        for one, its, rows in zip(targets, are_boxes(targets), table, strict=True):
            self._images.append(Image(one[its].numpy(), rows[rows[:, 5] > 0].numpy()))

    def state(self) -> list[Image] | None:
        return self._images or None

    def merge(self, states: Sequence[list[Image]]) -> None:
        self._images = [image for state in states for image in state]

    def results(self) -> dict[str, float]:
        """Return the metrics; NaN where no image has a box of the class or size."""
        precision = self._precision()
        by_size = {f"{NAME}_{size}": _mean(precision[..., 1 + place]) for place, size in enumerate(SIZES)}
        by_class = {
            f"{NAME}_class_{metric_part(name)}": _mean(precision[:, :, number, 0])
            for number, name in enumerate(self._classes[:MAX_CLASSES])
        }
        return {
            NAME: _mean(precision[..., 0]),
            f"{NAME}_50": _mean(precision[IOU_50, ..., 0]),
            f"{NAME}_75": _mean(precision[IOU_75, ..., 0]),
            **{name: value for name, value in (by_size | by_class).items() if not math.isnan(value)},
        }

    def curves(self) -> Curves:
        precision = self._precision()
        truth = np.concatenate([image.truth[:, 0] for image in self._images] or [np.empty(0)]).astype(int)
        counts = np.bincount(truth, minlength=len(self._classes)).tolist()
        there = {name: number for number, name in enumerate(self._classes) if counts[number]}
        return Curves(
            {name: precision[IOU_50, :, number, 0].tolist() for name, number in there.items()},
            {
                name: {
                    "average_precision": _mean(precision[:, :, number, 0]),
                    "average_precision_50": _mean(precision[IOU_50, :, number, 0]),
                    "support": counts[number],
                }
                for name, number in there.items()
            },
        )

    def _precision(self) -> np.ndarray:
        """Return precision [overlaps, recalls, classes, 1 + sizes]; -1 where there is no box.

        Of equal scores the order counts: that of the images is made one of their content.
        """
        images = sorted(self._images, key=lambda image: image.key)
        shape = (10, 101, len(self._classes), 1 + len(SIZES))
        if not any(len(image.truth) for image in images):
            return np.full(shape, -1.0)
        from faster_coco_eval import COCO, COCOeval_faster

        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(coco_of(images, len(self._classes)))
            found = detections_of(images)
            evaluated = COCOeval_faster(truth, truth.loadRes(found), "bbox") if found else None
            if evaluated is not None:
                evaluated.params.maxDets = [MOST]
                evaluated.evaluate()
                evaluated.accumulate()
        if evaluated is None:  # whose precision is 0 where there are boxes
            return _nothing_found(images, shape)
        return np.asarray(evaluated.eval["precision"])[..., -1].reshape(shape)


def coco_of(images: Sequence[Image], classes: int) -> dict[str, Any]:
    """Return what is in images as COCO's JSON has it, the images numbered from 1."""
    annotations = [
        {
            "image_id": number,
            "category_id": int(row[0]) + 1,
            "bbox": _extent(row[1:5]),
            "area": _area(row[1:5]),
        }
        for number, image in enumerate(images, 1)
        for row in image.truth
    ]
    return {
        "images": [{"id": number} for number in range(1, len(images) + 1)],
        "categories": [{"id": number, "name": str(number)} for number in range(1, classes + 1)],
        "annotations": [
            {"id": number, "iscrowd": 0, **annotation} for number, annotation in enumerate(annotations, 1)
        ],
    }


def detections_of(images: Sequence[Image]) -> list[dict[str, Any]]:
    """Return what was found in images as COCO's JSON has it."""
    return [
        {
            "image_id": number,
            "category_id": int(row[0]) + 1,
            "bbox": _extent(row[1:5]),
            "score": float(row[5]),
        }
        for number, image in enumerate(images, 1)
        for row in image.found
    ]


def metric_part(name: object) -> str:
    """Return a class's name as MLflow takes it in that of a metric."""
    return re.sub(r"[^\w\-. :]", "_", str(name), flags=re.ASCII)


def _extent(box: np.ndarray) -> list[float]:
    left, top, right, bottom = box.tolist()
    return [left, top, right - left, bottom - top]


def _area(box: np.ndarray) -> float:
    left, top, right, bottom = box.tolist()
    return float((right - left) * (bottom - top))


def _nothing_found(images: Sequence[Image], shape: tuple[int, ...]) -> np.ndarray:
    precision = np.full(shape, -1.0)
    for image in images:
        for row in image.truth:
            size = int(np.searchsorted([32**2, 96**2], _area(row[1:5])))
            precision[:, :, int(row[0]), [0, 1 + size]] = 0.0
    return precision


def _mean(precision: np.ndarray) -> float:
    """Return the mean over what there are boxes of."""
    known = precision[precision > -1]
    return float(known.mean()) if known.size else float("nan")
