"""Models loaded from their files and measured: by torch or by ONNX Runtime, on the same rows, by the same task."""

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from shoal.compression.measure import Call
from shoal.data.sources.base import Block
from shoal.export.folder import ExportedModel
from shoal.export.interface import Interface
from shoal.export.module import arrays_of
from shoal.inference.evaluation import evaluate_on_blocks
from shoal.inference.predictor import Predictor
from shoal.models.call import call_model
from shoal.tasks.accumulator import Accumulator
from shoal.tasks.base import Task
from shoal.tasks.multilabel_classification import MultilabelClassification
from shoal.tasks.regression import Regression

LEAST_PROBABILITY = 1e-30  # whose logarithm is still a number


class LoadedModel(Protocol):
    """A model that can be measured.

    Attributes:
        runtime: what runs it.
        has_classes: whether it predicts one of several classes.
    """

    runtime: str
    has_classes: bool

    def metrics(self, blocks: Iterable[Block]) -> dict[str, float]:
        """Return the task's metrics over labelled rows."""
        ...

    def classes(self, block: Block) -> np.ndarray:
        """Return the predicted class of each row [n]."""
        ...

    def call(self, block: Block) -> Call:
        """Return what computes the outputs for rows that are ready for the model."""
        ...


class TorchModel:
    """A model of torch."""

    runtime = "torch"

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor
        self.has_classes = bool(predictor.transform.label.classes)

    def metrics(self, blocks: Iterable[Block]) -> dict[str, float]:
        added = evaluate_on_blocks(self._predictor, blocks)
        assert added is not None, "the rows were looked at before"
        return added.results()

    def classes(self, block: Block) -> np.ndarray:
        return self._predictor.arrays(block)["prediction"]

    def call(self, block: Block) -> Call:
        model, inputs = self._predictor.model, self._predictor.inputs(block)

        def forward() -> object:
            with torch.inference_mode():
                return call_model(model, inputs)

        return forward


class OnnxModel:
    """An export that ONNX Runtime has loaded: raw columns in, predictions out.

    Attributes:
        transform: of the rows.
    """

    runtime = "onnxruntime"

    def __init__(self, exported: ExportedModel, predictor: Predictor) -> None:
        """Take an export.

        Args:
            predictor: of the model that it was made of, which knows its rows and its task.
        """
        self._exported, self._predictor = exported, predictor
        self.transform = predictor.transform
        self.has_classes = bool(self.transform.label.classes)

    def metrics(self, blocks: Iterable[Block]) -> dict[str, float]:
        added = self._predictor.accumulator()
        if self.transform.tokenizer is not None:
            measured = self._of_tokens()
            evaluate_on_blocks(measured, blocks, added)
        else:
            for block in blocks:
                self.evaluate(block, added)
        return added.results()

    def evaluate(self, block: Block, added: Accumulator) -> None:
        """Add labelled rows."""
        outputs = raw_outputs(self._run(block), self._exported.interface, self._predictor.task)
        self._predictor.evaluate_outputs(block, outputs, added)

    def classes(self, block: Block) -> np.ndarray:
        return self._run(block)[0]

    def call(self, block: Block) -> Call:
        arrays = arrays_of(block, self.transform, self._exported.interface.inputs)
        return lambda: self._exported.run(arrays)

    def _run(self, block: Block) -> Sequence[np.ndarray]:
        return self._exported.run(arrays_of(block, self.transform, self._exported.interface.inputs))

    def _of_tokens(self) -> Predictor:
        """Return a predictor whose task chooses the tokens, of which some may be masked."""
        predictor = self._predictor
        model = _TokenModel(self._exported, predictor.task)
        return Predictor(model, predictor.transform, predictor.task, predictor.preprocessing)


class _TokenModel(nn.Module):
    """Token ids [n, t] to the raw outputs of the task."""

    def __init__(self, exported: ExportedModel, task: Task) -> None:
        super().__init__()
        self._exported, self._task = exported, task

    def forward(self, tokens: Tensor) -> Tensor:
        [name] = [one.name for one in self._exported.interface.inputs]
        answers = self._exported.run({name: tokens.numpy()})
        return raw_outputs(answers, self._exported.interface, self._task)


def raw_outputs(answers: Sequence[np.ndarray], interface: Interface, task: Task) -> Tensor:
    """Return what a model returned [n, ...], as far as losses and metrics depend on it, of what its export answers."""
    if interface.outputs[0].name.startswith("logits"):
        return torch.from_numpy(answers[0])
    if isinstance(task, Regression):
        values = torch.from_numpy(answers[0])
        values = values if values.ndim > 1 else values[:, None]
        return torch.div(values - task.mean, task.scale)
    probabilities = torch.from_numpy(answers[1])
    if isinstance(task, MultilabelClassification):
        return probabilities.logit(eps=LEAST_PROBABILITY)
    return probabilities.clamp(min=LEAST_PROBABILITY).log()


def flips(original: LoadedModel, variant: LoadedModel, blocks: Iterable[Block]) -> float:
    """Return the share of rows whose predicted class is another one."""
    changed = rows = 0
    for block in blocks:
        differ = original.classes(block) != variant.classes(block)
        changed, rows = changed + int(differ.sum()), rows + len(differ)
    return changed / rows
