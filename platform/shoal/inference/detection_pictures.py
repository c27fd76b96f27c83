"""Images of raw rows with their true boxes and those that a model finds, for `shoal.plots.detection`."""

import numpy as np

from shoal.data.sources.base import Block
from shoal.inference.predictor import Predictor
from shoal.plots.detection import BoxedPicture

LEAST_SCORE = 0.4  # of boxes that are drawn


def drawn_boxes(predictor: Predictor, block: Block) -> list[BoxedPicture]:
    """Return the images of raw rows.

    Args:
        block: images [n, channels, height, width], and rows [k, 5] of their true boxes.
    """
    transform = predictor.transform
    answers = predictor.answers(block)
    rows = zip(
        np.asarray(block[transform.columns[0].name]),
        block[transform.label.name],
        *(answers[name] for name in ("prediction", "boxes", "scores")),
        strict=True,
    )
    return [
        BoxedPicture(
            pixels,
            [(transform.categories[int(row[0])], row[1:].tolist()) for row in true],
            [
                (f"{name} {score:.2f}", box)
                for name, box, score in zip(names, boxes, scores, strict=True)
                if score >= LEAST_SCORE
            ],
        )
        for pixels, true, names, boxes, scores in rows
    ]
