"""One of two versions of a registered model, measured row by row on the rows that both are compared on.

`python -m shoal.registry.measure` reads a `Request` from standard input, writes what each row adds to each metric into
a file, and the totals into a pipe as JSON. Each version has a process of its own: the code of two models may have
modules of one name, and a process imports the first.
"""

import hashlib
import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shoal.data.preprocessing_spec import PreprocessingSpec
from shoal.data.sampler import SPLITS, TRAIN, SplitRule
from shoal.data.sources.base import Block, Source
from shoal.data.sources.open import is_function
from shoal.data.text import TOKENS
from shoal.errors import ModelError, ShoalError
from shoal.inference.artifact_code import check_source_of_artifact
from shoal.inference.description import DESCRIPTION, Description
from shoal.inference.evaluation import evaluate_on_blocks
from shoal.inference.predictor import Predictor
from shoal.processes import open_answers
from shoal.registry.compare import Request
from shoal.registry.slices import SliceColumns
from shoal.tasks.accumulator import Accumulator, Part
from shoal.tasks.base import RowTerms
from shoal.tasks.classification import Classification
from shoal.tasks.metrics import is_higher_better
from shoal.tasks.open_data import reopen_source
from shoal.tasks.registry import TASKS


class RowAccumulator(Accumulator):
    """Also keeps what each row adds to the metrics that models are compared by."""

    def __init__(self, predictor: Predictor) -> None:
        predictor.accumulator()  # gives the task its loss
        super().__init__(predictor.task, torch.device("cpu"))
        self.terms: dict[str, list[RowTerms]] = {}

    def part(self, outputs: Any, batch: Any) -> Part:
        return Part(super().part(outputs, batch).sums, outputs, batch)

    def add(self, part: Part) -> None:
        super().add(part)
        for name, terms in self._task.row_terms(part.outputs, part.batch).items():
            self.terms.setdefault(name, []).append(terms)

    def arrays(self) -> list[np.ndarray]:
        """Return [n, 2] of each metric, both sums' terms of each row."""
        return [
            np.concatenate([torch.stack([part.above, part.below], dim=1).numpy() for part in parts])
            for parts in self.terms.values()
        ]


@dataclass
class Rows:
    """The rows of a comparison, as they are read: their digest and the columns that divide them."""

    columns: SliceColumns
    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        self._hash = hashlib.sha256()

    @property
    def digest(self) -> str:
        """Which rows these are, and what is to be predicted of them."""
        return self._hash.hexdigest()[:16]

    def passing(self, rows: Iterator[tuple[np.ndarray, Block]]) -> Iterator[Block]:
        """Yield blocks, having added them."""
        for numbers, block in rows:
            self._hash.update(numbers.astype("<i8").tobytes())
            for name in [name for name in (*self.labels, TOKENS) if name in block]:
                self._hash.update(_content(block[name]))
            self.columns.add(block)
            yield block


def measure(request: Request) -> dict[str, Any]:
    """Measure one model on the rows of the candidate's split; of these, those that the champion was not trained on.

    Returns:
        What `compare.Measured` holds besides the arrays of the file.

    Raises:
        UserError: it cannot be measured on these rows.
    """
    candidate, champion = (
        Description.load(Path(folder) / DESCRIPTION) for folder in (request.candidate, request.champion)
    )
    _check_comparable(candidate, champion)
    predictor = _load(request, (candidate, champion))
    spec = candidate.preprocessing
    seen = _trained_by(champion.preprocessing, spec)
    _check_source(request, spec.data.source)
    own = _preprocessing(predictor, spec)
    transform = predictor.transform
    for split in request.splits:
        if split in transform.label.unlabelled:
            continue
        rows = Rows(SliceColumns(transform), spec.data.labels)
        source = reopen_source(own, predictor.task.name)
        added = RowAccumulator(predictor)
        if evaluate_on_blocks(predictor, rows.passing(_rows(source, own, split, seen)), added) is not None:
            return _answer(request, predictor, own, split, rows, added)
    raise ModelError(f"it was trained on all {' and '.join(request.splits)} rows of this version")


def _answer(
    request: Request,
    predictor: Predictor,
    own: PreprocessingSpec,
    split: str,
    rows: Rows,
    added: RowAccumulator,
) -> dict[str, Any]:
    columns = rows.columns.divided()
    codes = np.array([column.codes for column in columns], np.int16)
    arrays = {f"terms{number}": terms for number, terms in enumerate(added.arrays())}
    np.savez(request.rows_file, allow_pickle=False, codes=codes, **arrays)
    task = predictor.task
    return {
        "source": own.data.source,
        "split": split,
        "rows": added.rows,
        "digest": rows.digest,
        "metrics": added.results(),
        "exponents": {name: parts[0].exponent for name, parts in added.terms.items()},
        "is_higher_better": {name: is_higher_better(name, task.directions) for name in added.terms},
        "compared_by": task.compared_by,
        "has_classes": isinstance(task, Classification),
        "columns": [(column.name, column.labels) for column in columns],
    }


def _load(request: Request, descriptions: tuple[Description, Description]) -> Predictor:
    """Load the model that is measured. Of a champion only the code that is the candidate's too may be its run's own."""
    folder = request.champion if request.is_champion else request.candidate
    is_own = not request.is_champion or descriptions[0].model.name == descriptions[1].model.name
    if request.code == "own" and is_own:
        return Predictor.load_own(folder)
    return Predictor.load(folder, trust_code=request.code == "trusted")


def _check_comparable(candidate: Description, champion: Description) -> None:
    """Refuse models that were trained for different things.

    Raises:
        ModelError: they have another task, another label, or losses that do not compare.
    """
    if candidate.task != champion.task:
        raise ModelError(f"it was trained for task={champion.task}, not {candidate.task}")
    labels = candidate.transform.label.name, champion.transform.label.name
    if labels[0] != labels[1]:
        raise ModelError(f"it predicts '{labels[1]}', not '{labels[0]}'")
    losses = [
        (one.objective.loss, one.objective.class_weight, one.data.weight) for one in (candidate, champion)
    ]
    if TASKS[candidate.task].compared_by == "loss" and losses[0] != losses[1]:
        raise ModelError("it was trained with another loss or other weights")


def _check_source(request: Request, source: str) -> None:
    """Refuse to call a function of data, unless this run's process or the user's word says so."""
    if request.code == "trusted":
        check_source_of_artifact(source, trust_code=True)
    elif request.code != "own" and is_function(source):
        raise ModelError(f"data.source='{source}' is a function, which only its own run calls")


def _preprocessing(predictor: Predictor, spec: PreprocessingSpec) -> PreprocessingSpec:
    """Return how a model takes the rows of `spec`: the same rows, with its own tokenizer, context and shape."""
    own = predictor.preprocessing
    form = {"context": own.data.context, "shape": own.data.shape, "tokenizer": own.data.tokenizer}
    return replace(own, data=spec.data.model_copy(update=form), seed=spec.seed)


def _trained_by(champion: PreprocessingSpec, spec: PreprocessingSpec) -> SplitRule | None:
    """Return the rule by which the champion was trained on rows of the same source; None where it was on another.

    Raises:
        ModelError: it was trained on other pieces of the same text, which are not divided by row.
    """
    if champion.data.source != spec.data.source:
        return None
    rule = champion.split_rule
    if rule != spec.split_rule and spec.tokenizer and not spec.has_label:
        raise ModelError(
            f"it was trained on other pieces of the same text (splits of seed {rule.seed}, {rule.validation:g} and "
            f"{rule.test:g}): set data.split_seed, data.validation_fraction and data.test_fraction as it had them"
        )
    return rule


def _rows(
    source: Source, spec: PreprocessingSpec, split: str, seen: SplitRule | None
) -> Iterator[tuple[np.ndarray, Block]]:
    """Yield numbers and rows of a split, without those that another rule trains on."""
    first = 0
    for source_split, block in source.blocks():
        rows = np.arange(first, first + len(next(iter(block.values()), ())))
        first += len(rows)
        kept = spec.split_rule.assign(rows, source_split, source.has_validation) == SPLITS.index(split)
        if seen is not None:
            kept &= seen.assign(rows, source_split, source.has_validation) != SPLITS.index(TRAIN)
        if kept.any():
            yield rows[kept], {name: column[kept] for name, column in block.items()}


def _content(values: np.ndarray) -> bytes:
    if values.dtype == object:
        return "\x1f".join(map(str, values.tolist())).encode("utf-8", "surrogatepass")
    return np.ascontiguousarray(values).tobytes()


def main(pipe: str) -> None:
    """Measure what standard input asks for, and write it into a pipe."""
    answers = open_answers(pipe)
    logging.getLogger("shoal").setLevel(logging.ERROR)
    request = Request(**json.load(sys.stdin))
    try:
        answer = measure(request)
    except (ShoalError, OSError, ValueError, RuntimeError) as error:
        answer = {"problem": " ".join(str(error).split()) or type(error).__name__}
    answers.write(json.dumps(answer) + "\n")
    answers.close()


if __name__ == "__main__":
    main(sys.argv[1])
