"""An exported model beside the model itself, on the same rows: how far their answers are apart.

A difference is relative to the larger of the value and the output's scale: absolute for probabilities, which have the
scale 1, and for logits, which are compared as probabilities. A class may differ where two are equally likely.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from shoal.data.sources.base import Block
from shoal.errors import VerificationError
from shoal.export.interface import Output
from shoal.export.module import is_language_model, tokens_of
from shoal.inference.predictor import Predictor
from shoal.models.call import call_model
from shoal.tasks.outputs import logits_of

TOLERANCE = 1e-5
BATCHES = (1, 2, 64)
ROWS, ROWS_OF_TOKENS = 1000, 64  # of tokens each row is as many predictions as it has tokens
SHOWN = 200  # characters of a row in a message

Answers = list[np.ndarray]


@dataclass(frozen=True)
class Compared:
    """What was compared: the answers to raw rows, and what each of them is."""

    answers: Callable[[Block], Answers]
    outputs: Sequence[Output]


@dataclass(frozen=True)
class Worst:
    """The row whose answers are furthest apart."""

    difference: float = 0.0
    name: str = ""
    row: int = -1
    batch: int = 0
    text: str = ""


def model_answers(predictor: Predictor, block: Block) -> Answers:
    """Return what a model itself answers, in the order of an exported one's outputs."""
    if not is_language_model(predictor.transform):
        return [np.asarray(values) for values in predictor.answers(block).values()]
    tokens = torch.from_numpy(tokens_of(block, predictor.transform))
    with torch.no_grad():
        return [logits_of(call_model(predictor.model, tokens)).float().numpy()]


def compare(
    exported: Mapping[str, Compared], predictor: Predictor, blocks: Iterator[Block]
) -> tuple[int, dict[str, float]]:
    """Compare at most `ROWS` rows in batches of each size, the model's answers being to the very same batch.

    Args:
        exported: by format.
        blocks: raw rows.

    Returns:
        how many rows there were, and the largest difference by format.

    Raises:
        VerificationError: one is larger than `TOLERANCE`; with the worst row.
    """
    worst = dict.fromkeys(exported, Worst())
    most = ROWS_OF_TOKENS if is_language_model(predictor.transform) else ROWS
    rows = 0
    for block in _batches(blocks, most):
        count = _rows(block)
        for size in BATCHES:
            for start in range(0, count, size):
                part = {name: values[start : start + size] for name, values in block.items()}
                expected = model_answers(predictor, part)
                for name, one in exported.items():
                    found = _furthest(one, part, expected, rows + start, size)
                    worst[name] = max(worst[name], found, key=lambda each: each.difference)
        rows += count
    _check(worst, rows)
    return rows, {name: one.difference for name, one in worst.items()}


def _check(worst: Mapping[str, Worst], rows: int) -> None:
    for name, one in worst.items():
        if one.difference > TOLERANCE:
            raise VerificationError(
                f"the {name} export differs from the model by {one.difference:.3g} (at most {TOLERANCE:g}): of {rows} "
                f"rows worst in held-out row {one.row}, in a batch of {one.batch}: {one.text}; it is not kept: leave "
                f"{name} out of export.formats, or have the model compute the same outside of Python's control"
            )


def _furthest(one: Compared, part: Block, expected: Answers, start: int, size: int) -> Worst:
    found = one.answers(part)
    differences = row_differences(one.outputs, found, expected)
    row = int(differences.argmax())
    if differences[row] == 0.0:
        return Worst()
    alone = np.zeros(len(differences), dtype=bool)
    triples = list(zip(one.outputs, found, expected, strict=True))
    place = int(np.argmax([_differences(*triple, alone)[row] for triple in triples]))
    raw = {name: values[row].tolist() if values.ndim > 1 else values[row] for name, values in part.items()}
    text = (
        f"{one.outputs[place].name} {_short(found[place][row].tolist())} instead of "
        f"{_short(expected[place][row].tolist())} for {_short(raw)}"
    )
    return Worst(float(differences[row]), one.outputs[place].name, start + row, size, text)


def row_differences(outputs: Sequence[Output], found: Answers, expected: Answers) -> np.ndarray:
    """Return for each row [n] the largest difference of any output; infinite where a class differs."""
    undecided = np.zeros(len(expected[0]), dtype=bool)
    for output, values in zip(outputs, expected, strict=True):
        if output.name.startswith("probabilities"):
            undecided = _undecided(values, outputs[0])
    each = [_differences(*one, undecided) for one in zip(outputs, found, expected, strict=True)]
    return np.asarray(np.maximum.reduce(each))


def _undecided(probabilities: np.ndarray, prediction: Output) -> np.ndarray:
    """Return rows whose class a difference of `TOLERANCE` can change."""
    if len(prediction.shape) > 1:  # several labels, each 0 or 1
        return np.asarray((np.abs(probabilities - 0.5) < TOLERANCE).any(axis=1))
    ranked = np.sort(probabilities, axis=1)
    return np.asarray(ranked[:, -1] - ranked[:, -2] < 2 * TOLERANCE)


def _differences(
    output: Output, found: np.ndarray, expected: np.ndarray, undecided: np.ndarray
) -> np.ndarray:
    if found.shape != expected.shape:
        return np.full(len(expected), np.inf)
    if found.dtype.kind != "f":
        values, right = (
            np.asarray(output.classes)[each] if output.classes and each.dtype.kind in "iu" else each
            for each in (found, expected)
        )
        kind: Any = np.int64 if values.dtype.kind in "iub" else str
        differ = (values.astype(kind) != right.astype(kind)).reshape(len(found), -1).any(axis=1)
        return np.where(differ & ~undecided, np.inf, 0.0)
    if output.name.startswith("logits"):
        found, expected = (torch.from_numpy(each).double().softmax(-1).numpy() for each in (found, expected))
    apart = np.abs(found - expected) / np.maximum(np.abs(expected), np.asarray(output.scale))
    apart = np.where((found == expected) | (np.isnan(found) & np.isnan(expected)), 0.0, apart)
    return np.asarray(np.nan_to_num(apart, nan=np.inf).reshape(len(found), -1).max(axis=1))


def _batches(blocks: Iterator[Block], most: int) -> Iterator[Block]:
    """Yield rows, as many as the largest batch at a time, where a block has so many."""
    for block in blocks:
        for start in range(0, min(_rows(block), most), max(BATCHES)):
            end = min(start + max(BATCHES), most)
            yield {name: values[start:end] for name, values in block.items()}
        most -= min(_rows(block), most)
        if not most:
            return


def _rows(block: Block) -> int:
    return len(next(iter(block.values())))


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."
