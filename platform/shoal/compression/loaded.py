"""Models loaded from their files and measured: by torch or by ONNX Runtime, on the same rows, by the same task."""

from collections.abc import Iterable

import numpy as np
import torch

from shoal.compression.measure import Call
from shoal.data.sources.base import Block
from shoal.inference.evaluation import evaluate_on_blocks
from shoal.inference.onnx_module import OnnxModule
from shoal.inference.predictor import Predictor
from shoal.models.call import call_model


class LoadedModel:
    """A model that can be measured.

    Attributes:
        runtime: what computes it.
        has_classes: whether it predicts one of several classes.
    """

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self.runtime = "onnxruntime" if isinstance(predictor.model, OnnxModule) else "torch"
        self.has_classes = bool(predictor.transform.label.classes)

    def metrics(self, blocks: Iterable[Block]) -> dict[str, float]:
        """Return the task's metrics over labelled rows."""
        added = evaluate_on_blocks(self._predictor, blocks)
        assert added is not None, "the rows were looked at before"
        return added.results()

    def classes(self, block: Block) -> np.ndarray:
        """Return the predicted class of each row [n]."""
        return self._predictor.arrays(block)["prediction"]

    def call(self, block: Block) -> Call:
        """Return what computes the outputs for rows that are ready for the model."""
        model, inputs = self._predictor.model, self._predictor.inputs(block)

        def forward() -> object:
            with torch.inference_mode():
                return call_model(model, inputs)

        return forward


def flips(original: LoadedModel, variant: LoadedModel, blocks: Iterable[Block]) -> float:
    """Return the share of rows whose predicted class is another one."""
    changed = rows = 0
    for block in blocks:
        differ = original.classes(block) != variant.classes(block)
        changed, rows = changed + int(differ.sum()), rows + len(differ)
    return changed / rows
