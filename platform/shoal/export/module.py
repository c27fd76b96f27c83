"""The graph of an exported model: raw columns in, predictions out.

It is the transform, the model and what `Predictor.answers` makes of the outputs, in tensors alone, so that it can be
recorded. That it computes the same is not taken for granted: `shoal.export.comparison`.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shoal.data.preprocessing import Column, Transform
from shoal.data.sources.base import Block
from shoal.data.template import fill
from shoal.data.text import TOKENS as TOKENS_COLUMN
from shoal.data.text import padded
from shoal.data.tokenizer import tokenizer_from_json
from shoal.errors import ModelError
from shoal.export.columns import Numbers, column_array, column_module, describe_column
from shoal.export.interface import BATCH, TOKENS, Input, Output
from shoal.inference.predictor import Predictor
from shoal.inference.rows import TEXT as TEXT_COLUMN
from shoal.models.call import call_model, forward_parameters
from shoal.models.cpu_kernels import use_torch_linear
from shoal.models.inputs import LENGTHS, with_lengths
from shoal.tasks.custom import Custom
from shoal.tasks.multilabel_classification import MultilabelClassification
from shoal.tasks.outputs import logits_of, tensors_of
from shoal.tasks.regression import Regression
from shoal.tasks.speech_recognition import SpeechRecognition

Takes = tuple[tuple[Input, ...], nn.Module]
Gives = tuple[tuple[Output, ...], Callable[[Any], tuple[Tensor, ...]]]
EXAMPLE_ROWS = 3  # at least 2: one row would be recorded as the only number of rows


class ModelWithTransform(nn.Module):
    """A model behind its fitted transform.

    Attributes:
        inputs: of `forward`, in order.
        outputs: that it returns, in order.
    """

    def __init__(self, predictor: Predictor) -> None:
        """Take a model apart from its predictor, which stays as it is.

        Raises:
            ModelError: its inputs are made by a function of the user's own, in Python.
        """
        super().__init__()
        self.model = copy.deepcopy(predictor.model).eval()
        use_torch_linear(self.model)
        self.inputs, self.features = features_of(predictor.transform, self.model)
        with torch.no_grad():
            example = call_model(self.model, self.features(*example_inputs(self.inputs)))
        self.outputs, self._answers = answers_of(predictor, example)

    def forward(self, *raw: Tensor) -> tuple[Tensor, ...]:
        """Map raw columns, as `inputs` says, to predictions, as `outputs` says."""
        return self._answers(call_model(self.model, self.features(*raw)))


def is_language_model(transform: Transform) -> bool:
    """Whether tokens are predicted from tokens, so that the logits are what is exported."""
    return transform.tokenizer is not None and not transform.has_label


def tokens_of(block: Block, transform: Transform) -> np.ndarray:
    """Return the token ids [rows, t], int64, of rows of tokens, or of texts."""
    context = transform.input_shape[0]
    if TOKENS_COLUMN in block:
        return block[TOKENS_COLUMN][:, :context].astype(np.int64)
    assert transform.tokenizer is not None
    texts = [str(text) for text in block[TEXT_COLUMN]]
    return padded(tokenizer_from_json(transform.tokenizer), texts, context).astype(np.int64)


def example_inputs(inputs: Sequence[Input], rows: int = EXAMPLE_ROWS) -> tuple[Tensor, ...]:
    """Return ones, which are a number, a category, a token, a length and a place in an array."""
    sizes = {BATCH: rows, TOKENS: 4}
    return tuple(
        torch.ones(
            [sizes[size] if isinstance(size, str) else size for size in one.shape],
            dtype=getattr(torch, one.dtype),
        )
        for one in inputs
    )


def arrays_of(block: Block, transform: Transform, inputs: Sequence[Input]) -> dict[str, np.ndarray]:
    """Return columns of raw rows as the inputs take them.

    Raises:
        DataError: a column is missing, or holds what an input does not take.
    """
    if transform.tokenizer is not None:
        return {TOKENS_COLUMN: tokens_of(block, transform)}
    if transform.input_tree is not None:
        packed = torch.from_numpy(transform.stored(block))
        found, lengths = transform.packing().unpack(packed)
        arrays = found | {_lengths_name(name): value for name, value in lengths.items()}
        return {one.name: arrays[one.name].numpy() for one in inputs}
    transform.check_columns(transform.columns, block)
    return {
        column.name: column_array(column, block[column.name], one)
        for column, one in zip(transform.columns, inputs, strict=True)
    }


def features_of(transform: Transform, model: nn.Module) -> Takes:
    """Return what is passed, and what makes the model's inputs of it.

    Raises:
        ModelError: a function of the user's own makes them, in Python.
    """
    if transform.collate is not None:
        raise ModelError(
            f"the model's inputs are made by data.collate='{transform.collate}', Python that no graph can hold: have "
            "the model's forward do it, or export the weights alone with export.formats=safetensors"
        )
    if transform.tokenizer is not None:
        most = transform.input_shape[0]
        meaning = f"token ids of tokenizer.json, 2 to {most}; 0 fills up shorter rows"
        return (
            Input(name=TOKENS_COLUMN, dtype="int64", shape=(BATCH, TOKENS), meaning=meaning),
        ), nn.Identity()
    if transform.input_tree is not None:
        return _tree_of(transform, model)
    return tuple(map(describe_column, transform.columns)), _Joined(transform)


class _Joined(nn.Module):
    """Columns to the one array that a model takes, as `Transform.features`."""

    def __init__(self, transform: Transform) -> None:
        super().__init__()
        columns = list(enumerate(transform.columns))
        self._numbers = [place for place, column in columns if column.kind == "number"]
        self._others = [place for place, column in columns if column.kind != "number"]
        self.numbers = (
            Numbers([transform.columns[place] for place in self._numbers]) if self._numbers else None
        )
        self.others = nn.ModuleList(column_module(transform.columns[place]) for place in self._others)
        self._shape = transform.shape
        order = self._order(transform)
        self.order = nn.Buffer(order) if not torch.equal(order, torch.arange(len(order))) else None

    def _order(self, transform: Transform) -> Tensor:
        """Return where each feature of `Transform.features` is among those that are made here."""
        if not self._numbers:
            return torch.arange(0)
        columns = transform.columns
        marking = [place for place in self._numbers if columns[place].has_missing]
        made = [(place, 0) for place in self._numbers] + [(place, 1) for place in marking]
        made += [(place, at) for place in self._others for at in range(columns[place].width)]
        places = {feature: at for at, feature in enumerate(made)}
        return torch.tensor([places[feature] for feature in sorted(made)])

    def forward(self, *raw: Tensor) -> Tensor:
        parts = [made(raw[place]) for made, place in zip(self.others, self._others, strict=True)]
        if self.numbers is not None:
            parts.insert(0, self.numbers(*(raw[place] for place in self._numbers)))
        if len(parts) == 1 and not self._shape and self.order is None:
            return parts[0]  # type: ignore[no-any-return]
        rows = torch.cat([part.flatten(1) for part in parts], dim=1)
        rows = rows if self.order is None else rows[:, self.order]
        return rows.unflatten(1, self._shape) if self._shape else rows


def _lengths_name(column: str) -> str:
    return f"{column}_{LENGTHS}"


def _tree_of(transform: Transform, model: nn.Module) -> Takes:
    """Return the arrays of a tree as inputs; of ragged ones the lengths too, where the model takes them."""
    fields = [column.field() for column in transform.columns]
    ragged = [field.name for field in fields if field.is_ragged]
    inputs = [
        Input(
            name=field.name, dtype=field.dtype, shape=(BATCH, *field.shape), meaning=_meaning(field.is_ragged)
        )
        for field in fields
    ]
    assert transform.input_tree is not None
    blank = dict(zip([field.name for field in fields], example_inputs(inputs), strict=True))
    tree = fill(transform.input_tree, blank.__getitem__)
    ones = {name: torch.ones(EXAMPLE_ROWS, dtype=torch.int64) for name in ragged}
    takes_lengths = with_lengths(transform.input_tree, tree, ones, forward_parameters(model)) is not tree
    if not (ragged and takes_lengths):
        return tuple(inputs), _Tree(transform, model, ragged=())
    meaning = "entries that are no padding"
    lengths = [
        Input(name=_lengths_name(name), dtype="int64", shape=(BATCH,), meaning=meaning) for name in ragged
    ]
    return (*inputs, *lengths), _Tree(transform, model, ragged)


def _meaning(is_ragged: bool) -> str:
    return "the array as in training" + (", filled up with 0 to the longest" if is_ragged else "")


class _Tree(nn.Module):
    """Arrays, and the lengths of ragged ones, to the tree that a model takes."""

    def __init__(self, transform: Transform, model: nn.Module, ragged: Sequence[str]) -> None:
        super().__init__()
        self._tree, self._names = transform.input_tree, [column.name for column in transform.columns]
        self._ragged, self._taken = ragged, forward_parameters(model)

    def forward(self, *raw: Tensor) -> Any:
        arrays = dict(zip(self._names, raw, strict=False))
        lengths = dict(zip(self._ragged, raw[len(self._names) :], strict=False))
        assert self._tree is not None
        inputs = fill(self._tree, arrays.__getitem__)
        return with_lengths(self._tree, inputs, lengths, self._taken) if lengths else inputs


def answers_of(predictor: Predictor, example: Any) -> Gives:
    """Return what is returned, and how it is made of what the model returned, e.g. of an example."""
    transform, task, label = predictor.transform, predictor.task, predictor.transform.label
    if is_language_model(transform):
        meaning = "of each next token" if task.name == "causal_lm" else "of each token"
        logits = (BATCH, TOKENS, transform.vocabulary)
        return (Output(name="logits", dtype="float32", shape=logits, meaning=meaning),), lambda outputs: (
            logits_of(outputs).float(),
        )
    if task.name == Custom.name:
        named = tensors_of(example, EXAMPLE_ROWS)
        names = list(named)
        made = tuple(
            Output(
                name=name,
                dtype="float64",
                shape=(BATCH, *_row_shape(value)),
                meaning="as the model returns it",
            )
            for name, value in named.items()
        )
        return made, lambda outputs: tuple(_squeezed(tensors_of(outputs)[name]) for name in names)
    if isinstance(task, SpeechRecognition):
        raise ModelError(
            f"task={task.name} turns outputs into texts, Python that no graph can hold: export the weights alone with "
            "export.formats=safetensors"
        )
    if task.takes_boxes:
        raise ModelError(
            f"a model of task={task.name} is not exported: its boxes are chosen by Shoal, not by the model; serve it, "
            "or call it by load_model"
        )
    if isinstance(task, MultilabelClassification):
        shape = (BATCH, task.labels)
        return (
            Output(name="prediction", dtype="int64", shape=shape, meaning="1: probability above 0.5"),
            Output(name="probabilities", dtype="float64", shape=shape, meaning="of each label"),
        ), _multilabel
    if label.classes:
        return _classes_of(label.classes)
    return _numbers_of(predictor)


def _row_shape(value: Tensor) -> tuple[int, ...]:
    return tuple(_squeezed(value).shape[1:])


def _squeezed(value: Tensor) -> Tensor:
    return value.squeeze(1) if value.shape[1:] == (1,) else value


def _multilabel(outputs: Any) -> tuple[Tensor, ...]:
    probabilities = logits_of(outputs).double().sigmoid()
    return (probabilities > 0.5).long(), probabilities


def _classes_of(classes: tuple[bool | int | str, ...]) -> Gives:
    """Return class and probabilities; classes that are no whole numbers as their places."""
    are_numbers = not any(isinstance(name, str) for name in classes)
    values = torch.tensor([int(name) for name in classes]) if are_numbers else None

    def answers(outputs: Any) -> tuple[Tensor, ...]:
        probabilities = logits_of(outputs).double().softmax(dim=1)
        likeliest = probabilities.argmax(dim=1)
        return likeliest if values is None else values[likeliest], probabilities

    places = () if are_numbers else tuple(map(str, classes))
    meaning = "the likeliest class" if are_numbers else "place of the likeliest class"
    return (
        Output(name="prediction", dtype="int64", shape=(BATCH,), meaning=meaning, classes=places),
        Output(name="probabilities", dtype="float64", shape=(BATCH, len(classes)), meaning="of each class"),
    ), answers


def _numbers_of(predictor: Predictor) -> Gives:
    """Return predictions in the unit of the label, or of each of several."""
    task, label = predictor.task, predictor.transform.label
    assert isinstance(task, Regression)
    meaning = "in the unit of the label"
    if not predictor.transform.target_columns and predictor.transform.has_label:
        one = Output(name="prediction", dtype="float64", shape=(BATCH,), meaning=meaning, scale=label.std)
        return (one,), lambda outputs: (logits_of(outputs).reshape(-1).double() * label.std + label.mean,)
    scale, mean = task.scale, task.mean
    several = Output(
        name="prediction",
        dtype="float64",
        shape=(BATCH, len(task.names)),
        meaning=f"{meaning}s {', '.join(task.names)}",
        scale=tuple(scale.tolist()),
    )
    return (several,), lambda outputs: (logits_of(outputs).double() * scale + mean,)


def columns_passed_as_features(transform: Transform) -> list[Column]:
    """Return columns of text that no graph can hash: their features are passed."""
    return [column for column in transform.columns if column.kind in ("hashed", "words")]
