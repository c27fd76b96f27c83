"""What a detector found, as callers receive it, and what tells whether it still computes the same.

Depends on the task's meaning of outputs; independent of rows and of saved models.
"""

import numpy as np
import pandas as pd
from torch import Tensor

from shoal.tasks.object_detection import ObjectDetection


def boxes_by_image(task: ObjectDetection, outputs: Tensor) -> dict[str, np.ndarray]:
    """Return columns [n] of lists, the best first: names of classes, boxes in pixels, scores."""
    found = task.found(outputs)
    names = [str(name) for name in task.classes]
    columns: dict[str, list[list[object]]] = {"prediction": [], "boxes": [], "scores": []}
    for boxes, scores, classes in zip(*found, strict=True):
        there = scores > 0
        columns["prediction"].append([names[number] for number in classes[there].tolist()])
        columns["boxes"].append(boxes[there].tolist())
        columns["scores"].append(scores[there].tolist())
    return {name: _lists(values) for name, values in columns.items()}


def _lists(values: list[list[object]]) -> np.ndarray:
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


def fingerprint_of(outputs: Tensor) -> pd.DataFrame:
    """Return the largest and the mean of each channel of outputs [n, channels, height, width], a row for each image.

    Unlike boxes, of which one may be just above a threshold, these are alike wherever the outputs are.
    """
    flat = outputs.flatten(2)
    return pd.DataFrame({"largest": flat.amax(dim=2).tolist(), "mean": flat.mean(dim=2).tolist()})


def resized(boxes: np.ndarray, shape: tuple[int, ...], sizes: np.ndarray) -> np.ndarray:
    """Return boxes in pixels of the images that were resized.

    Args:
        boxes: [n] lists of boxes.
        shape: (height, width) that the images were resized to.
        sizes: [n, 2] heights and widths that they had.
    """
    scales = (sizes / np.array(shape))[:, [1, 0, 1, 0]]
    pairs = zip(boxes, scales, strict=True)
    return _lists([(np.array(some).reshape(-1, 4) * scale).tolist() for some, scale in pairs])
