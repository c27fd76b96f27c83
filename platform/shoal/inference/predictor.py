"""A trained model with the transform it was fitted with: raw rows in, labels out.

MLflow loads this as a pyfunc model (`_load_pyfunc`). Depends on torch and the transform; independent of Ray, MLflow and
training.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from shoal.config import import_path, objects
from shoal.data.loader import Batch
from shoal.data.misfits import Misfits
from shoal.data.preprocessing import Transform
from shoal.data.preprocessing_spec import PreprocessingSpec
from shoal.data.sources.base import Block
from shoal.data.text import TOKENS, padded
from shoal.data.tokenizer import tokenizer_from_json
from shoal.data.tree import Tree, clone, row_count
from shoal.errors import ModelError
from shoal.inference import golden
from shoal.inference.artifact import check_model
from shoal.inference.artifact_code import (
    CODE,
    builder_of_artifact,
    code_of_artifact,
    is_trusted_by_environment,
)
from shoal.inference.description import DESCRIPTION, load_model
from shoal.inference.detection import boxes_by_image, fingerprint_of
from shoal.inference.generation import MASK_WORD, fill_in, stream_text, text_loss
from shoal.inference.golden import Golden
from shoal.inference.recordings import joined, transcripts, waves_of_block
from shoal.inference.rows import TEXT, as_block, as_rows
from shoal.models.call import call_model
from shoal.models.inputs import blank_targets, view_of_rows
from shoal.models.registry import find_builder
from shoal.tasks.accumulator import Accumulator
from shoal.tasks.base import Task
from shoal.tasks.custom import Custom
from shoal.tasks.multilabel_classification import MultilabelClassification
from shoal.tasks.object_detection import ObjectDetection
from shoal.tasks.objective import Find, use_objective
from shoal.tasks.outputs import logits_of, tensors_of
from shoal.tasks.registry import make_task
from shoal.tasks.regression import Regression
from shoal.tasks.speech_recognition import SpeechRecognition
from shoal.training.evaluation import RowLimit

logger = logging.getLogger(__name__)

# What is predicted: a list or an array [rows] by column.
Answers = dict[str, Any]

GOLDEN_TEXTS, GOLDEN_TEXT = 2, 32  # rows of a language model, and characters of each
GOLDEN_PARAMS = {"max_new_tokens": 4, "temperature": 0.0}


class Predictor:
    """A model that takes raw rows.

    Attributes:
        digest: 12 hexadecimal digits that name the very files of the saved model; empty: of weights outside one.
        golden: rows that the saved model carries, with the answers it gave; None: it carries none.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        transform: Transform,
        task: Task,
        preprocessing: PreprocessingSpec,
        complete: Callable[[], None] | None = None,
        find: Find = import_path.find,
    ) -> None:
        """Take a model and what it was trained with.

        Args:
            complete: gives the task its loss and metrics, which prediction does not need; None: it has them.
            find: imports `data.collate`.
        """
        self._complete, self._find = complete, find
        self.model, self.transform, self.task, self.preprocessing = (
            model.eval(),
            transform,
            task,
            preprocessing,
        )
        self.golden: Golden | None = None
        self.digest = ""
        self._limit = RowLimit()
        self._view_of = lambda transform: view_of_rows(transform, model, find)
        self._rows_as_taken = self._view_of(transform)

    @classmethod
    def load(cls, folder: str | Path, *, trust_code: bool = False) -> "Predictor":
        """Load a saved model: data, of which nothing is executed, that are as they were saved.

        Args:
            folder: where the weights and their description lie, inside a saved MLflow model.
            trust_code: build the model by its own code, which lies in the MLflow model, if its description names some.

        Raises:
            ModelError: the folder does not exist, a file of it is missing, damaged, changed or of a format that could
                run code, the description names code that may not be run, or the golden rows are answered otherwise.
        """
        path = Path(folder).resolve() / DESCRIPTION
        return cls._load(
            Path(folder),
            lambda name, _: builder_of_artifact(path, name, trust_code),
            partial(code_of_artifact, path, trust_code),
        )

    @classmethod
    def load_own(cls, folder: str | Path) -> "Predictor":
        """Load what this run itself has written: its builder is found where training found it.

        Raises:
            ModelError: as `load`.
        """
        objects.receive_files(Path(folder).resolve().parents[1] / CODE / objects.FOLDER)
        return cls._load(Path(folder), lambda name, _: find_builder(name), import_path.find)

    @classmethod
    def _load(cls, folder: Path, find: Find, find_code: Find) -> "Predictor":
        """Check the files, load them, and have the golden rows answered as when the model was saved."""
        digest = check_model(folder)
        predictor = cls._build(folder, find, find_code)
        predictor.digest, predictor.golden = digest, Golden.load(folder)
        if predictor.golden:
            predictor.golden.check(predictor.golden_answers, folder)
        return predictor

    @classmethod
    def _build(cls, folder: Path, find: Find, find_code: Find) -> "Predictor":
        description, model = load_model(folder, find)
        transform, data, task = description.transform, description.data, description.task
        objective = partial(
            use_objective, label=transform.label, is_weighted=transform.weight is not None, find=find_code
        )
        made = make_task(task, transform, data, description.seed)
        complete = partial(objective, made, description.objective)
        return cls(model, transform, made, description.preprocessing, complete, find_code)

    def of_other_model(self, model: torch.nn.Module) -> "Predictor":
        """Return another model for the same rows and task."""
        return Predictor(model, self.transform, self.task, self.preprocessing, self._complete, self._find)

    def of_other_rows(self, transform: Transform, preprocessing: PreprocessingSpec) -> "Predictor":
        """Return the same model for rows whose label has another name."""
        other = Predictor(self.model, transform, self.task, preprocessing, self._complete, self._find)
        other.digest = self.digest
        return other

    def golden_rows(self, block: Block) -> Any:
        """Return rows for a saved model to carry, as a caller passes them; of a language model the begins of texts."""
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        rows = golden.choose(as_rows(block, self.transform), parameters)
        if not self._writes_text:
            return rows
        end = f" {MASK_WORD}" if self.task.name == "masked_lm" else ""
        return pd.DataFrame({TEXT: [text[:GOLDEN_TEXT] + end for text in rows[TEXT][:GOLDEN_TEXTS]]})

    def golden_answers(self, rows: Any) -> pd.DataFrame:
        """Predict golden rows; a language model by its likeliest tokens, and with the loss of each text."""
        if isinstance(self.task, ObjectDetection):
            return fingerprint_of(self.outputs(as_block(rows, self.transform)))
        if not self._writes_text:
            return pd.DataFrame(self.answers(as_block(rows, self.transform)))
        losses = [self._loss(text) for text in rows[TEXT]]
        return self.predict(rows, GOLDEN_PARAMS).assign(loss=losses)

    def outputs(self, block: Block) -> Tensor:
        """Return the model's raw outputs [rows, outputs], float64; of several tensors the one that the task reads."""
        with torch.no_grad():
            found = [
                self._limit.run(batch, lambda part: logits_of(call_model(self.model, clone(part.inputs))))
                for batch in self._views(block, is_labelled=False)
            ]
        return joined([part for parts in found for part in parts]).double()

    def inputs(self, block: Block) -> Tree:
        """Return what the model takes of raw rows: of the first, as many as are computed at a time."""
        return next(self._views(block, is_labelled=False)).inputs

    def _views(self, block: Block, is_labelled: bool) -> Iterator[Batch]:
        """Yield rows as the task views them, some at a time."""
        transform = self.transform.stretched(block)
        as_taken = self._rows_as_taken if transform is self.transform else self._view_of(transform)
        inputs, rows = torch.from_numpy(transform.stored(block)), self.task.held_out_rows.most
        targets = transform.targets(block) if is_labelled else blank_targets(transform, len(inputs)).numpy()
        for some, their_targets in zip(
            inputs.split(rows), torch.from_numpy(targets).split(rows), strict=True
        ):
            batch = as_taken(Batch(some, their_targets, count=len(some)), None)
            yield self.task.view(batch, None) if self.task.view else batch

    def predict(self, data: Any, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Predict from a frame, a dict of columns, or the array of the one tensor column.

        Where a model takes several arrays, or one whose rows differ in length: from a list of items as the data set
        returned them, without the label; a dict of arrays by field; or a frame whose columns are the fields.

        Returns:
            One row per input row: `prediction`, and for a classification `probabilities`, one per class in the
            order of the label's classes. Of several labels `prediction` is a list, in the order of `data.label`, and so
            are the `probabilities` of a multilabel classification. Of an object detection `prediction` lists the
            classes of what was found in an image, the best first, and `boxes` (left, top, right, bottom, in pixels)
            and `scores` what belongs to each. A custom task predicts what the model returned: a
            column for each key of a dict, `output_0` and so on of a tuple.
            A language model predicts text: a causal one the continuation, with the
            parameters `max_new_tokens`, `temperature` (0: the likeliest token) and `seed`; a masked one the text with
            its [MASK]s filled in.
        """
        block = as_block(data, self.transform)
        if not self.transform.tokenizer:
            misfits = Misfits(self.transform)
            misfits.add(block)
            for line in misfits.lines():
                logger.warning("%s", line)
        return pd.DataFrame(self.answers(block, params))

    def answers(self, block: Block, params: Mapping[str, Any] | None = None) -> Answers:
        """Return the columns of `predict` for columns of raw rows, without a frame: for a caller with few rows."""
        arrays = self.arrays(block, params)
        return {name: values if values.ndim == 1 else values.tolist() for name, values in arrays.items()}

    def arrays(self, block: Block, params: Mapping[str, Any] | None = None) -> dict[str, np.ndarray]:
        """Return `answers` as arrays [rows, ...]: for a caller with many rows.

        Args:
            block: every column that the model takes; of a model of text, `text`.
            params: as of `predict`.
        """
        label = self.transform.label
        if self._writes_text:
            chosen = self.params | dict(params or {})
            texts = [self._generate(str(text), chosen) for text in block[TEXT]]
            return {"prediction": np.array(texts, dtype=object)}
        if self.transform.tokenizer and TOKENS not in block:
            block = {TOKENS: self._tokens(block[TEXT])}
        if self.task.name == Custom.name:
            return self._arrays_as_returned(block)
        if isinstance(self.task, SpeechRecognition):
            heard = self.heard(waves_of_block(block, self.transform))
            return {"prediction": transcripts(self.task, heard, int((params or {}).get("beam", 0)))}
        outputs = self.outputs(block)
        if self.transform.target_columns or not self.transform.has_label:
            return self._arrays_of_targets(outputs)
        if not label.classes:
            return {"prediction": label.values(outputs.reshape(-1).numpy())}
        probabilities = outputs.softmax(dim=1).numpy()
        return {
            "prediction": label.values(probabilities.argmax(axis=1)),
            "probabilities": probabilities,
        }

    def _arrays_of_targets(self, outputs: Tensor) -> dict[str, np.ndarray]:
        """Return predictions where the label is several columns."""
        if isinstance(self.task, MultilabelClassification):
            probabilities = outputs.sigmoid()
            found = {"prediction": (probabilities > 0.5).long(), "probabilities": probabilities}
        elif isinstance(self.task, ObjectDetection):
            return boxes_by_image(self.task, outputs)
        else:
            assert isinstance(self.task, Regression)
            found = {"prediction": outputs * self.task.scale + self.task.mean}
        return {name: values.numpy() for name, values in found.items()}

    def _arrays_as_returned(self, block: Block) -> dict[str, np.ndarray]:
        """Return the outputs of a custom task, of which only a loss of the user's knows the meaning."""
        with torch.no_grad():
            parts = [
                part
                for batch in self._views(block, is_labelled=False)
                for part in self._limit.run(batch, self._tensors_of)
            ]
        found = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        return {
            name: (values.squeeze(1) if values.shape[1:] == (1,) else values).numpy()
            for name, values in found.items()
        }

    def heard(self, block: Block) -> list[tuple[Batch, Tensor]]:
        """Return what the task views of recordings, some at a time, with the model's outputs."""

        def outputs_of(batch: Batch) -> tuple[Batch, Tensor]:
            return batch, logits_of(call_model(self.model, clone(batch.inputs)))

        with torch.no_grad():
            views = self._views(block, is_labelled=False)
            return [part for view in views for part in self._limit.run(view, outputs_of)]

    def _tensors_of(self, batch: Batch) -> dict[str, Tensor]:
        return tensors_of(call_model(self.model, clone(batch.inputs)), row_count(batch.inputs))

    def accumulator(self) -> Accumulator:
        """Return what `evaluate` adds to.

        Raises:
            ModelError: the loss or a metric is code that may not be run.
        """
        if self._complete is not None:
            self._complete()
            self._complete = None
        return Accumulator(self.task, torch.device("cpu"))

    def evaluate(self, block: Block, added: Accumulator) -> None:
        """Add labelled rows, as evaluation in training does."""
        with torch.no_grad():
            for view in self._views(block, is_labelled=True):
                for part in self._limit.run(
                    view, lambda some: added.part(call_model(self.model, clone(some.inputs)), some)
                ):
                    added.add(part)

    def evaluate_outputs(self, block: Block, outputs: Tensor, added: Accumulator) -> None:
        """Add labelled rows by raw outputs [rows, ...] that another runtime computed."""
        start = 0
        for view in self._views(block, is_labelled=True):
            end = start + row_count(view.inputs)
            added.add(added.part(outputs[start:end], view))
            start = end

    @property
    def params(self) -> dict[str, Any]:
        """The parameters of `predict` besides the rows, with their defaults."""
        if isinstance(self.task, SpeechRecognition):
            return {"beam": 0}
        if self.task.name != "causal_lm":
            return {}
        return {"max_new_tokens": 64, "temperature": 1.0, "seed": 0}

    @property
    def _writes_text(self) -> bool:
        return bool(self.transform.tokenizer) and not self.transform.has_label

    def _loss(self, text: str) -> float:
        assert self.transform.tokenizer is not None
        tokenizer, context = tokenizer_from_json(self.transform.tokenizer), self.transform.input_shape[0]
        return text_loss(self.model, tokenizer, context, text, is_causal=self.task.name == "causal_lm")

    def _generate(self, text: str, params: Mapping[str, Any]) -> str:
        assert self.transform.tokenizer is not None
        tokenizer, context = tokenizer_from_json(self.transform.tokenizer), self.transform.input_shape[0]
        if self.task.name == "masked_lm":
            return fill_in(self.model, tokenizer, context, text)
        return "".join(self.stream(text, params))

    def stream(self, text: str, params: Mapping[str, Any]) -> Iterator[str]:
        """Yield a causal model's continuation of a text as it is generated; joined, it is what `predict` returns."""
        assert self.transform.tokenizer is not None
        tokenizer, context = tokenizer_from_json(self.transform.tokenizer), self.transform.input_shape[0]
        count, temperature = int(params["max_new_tokens"]), float(params["temperature"])
        return stream_text(self.model, tokenizer, context, text, count, temperature, int(params["seed"]))

    def _tokens(self, texts: np.ndarray) -> np.ndarray:
        assert self.transform.tokenizer is not None
        return padded(
            tokenizer_from_json(self.transform.tokenizer),
            list(map(str, texts)),
            self.transform.input_shape[0],
        )


def weights_folder(model: str | Path) -> Path:
    """Return the folder that `Predictor.load` takes, inside a saved MLflow model."""
    data = Path(model) / "data"
    if not data.is_dir():
        raise ModelError(
            f"'{model}' is no MLflow model that Shoal wrote: name a run folder, runs:/ID or models:/NAME@ALIAS"
        )
    return next(path for path in data.iterdir() if path.is_dir())


def _load_pyfunc(path: str) -> Predictor:
    """Load a model; MLflow's entry point (`loader_module`)."""
    return Predictor.load(path, trust_code=is_trusted_by_environment())
