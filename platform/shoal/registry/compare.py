"""A new version of a registered model and its champion, both measured on the same rows.

`python -m shoal.registry.compare` reads a `Request` from standard input and writes what was measured into a pipe, both
as JSON. It needs torch and the data, which the process that syncs a run does not.
"""

import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from shoal.data.preprocessing_spec import PreprocessingSpec
from shoal.data.sampler import SPLITS, TRAIN, SplitRule
from shoal.data.sources.base import Block, Source
from shoal.data.sources.open import is_function
from shoal.errors import ModelError, ShoalError
from shoal.inference.description import DESCRIPTION, Description
from shoal.inference.evaluation import evaluate_on_blocks
from shoal.inference.predictor import Predictor
from shoal.processes import open_answers
from shoal.registry.champion import Measured, Request
from shoal.tasks.open_data import reopen_source


def measure(request: Request) -> Measured:
    """Measure both models on the rows of the candidate's split; of these, those that the champion was not trained on.

    Raises:
        UserError: one of them cannot be measured on these rows.
    """
    candidate, champion = _load(request)
    spec = candidate.preprocessing
    if not request.runs_code and is_function(spec.data.source):
        raise ModelError(f"data.source='{spec.data.source}' is a function, which only its own run calls")
    seen = _trained_by(champion, spec)
    found = []
    for predictor in (candidate, champion):
        own = _preprocessing(predictor, spec)
        rows = _rows(reopen_source(own, predictor.task.name), own, request.split, seen)
        added = evaluate_on_blocks(predictor, rows)
        if added is None:
            raise ModelError(f"it was trained on all {request.split} rows of this version")
        found.append((added.rows, added.results()[predictor.task.compared_by]))
    return Measured(rows=found[0][0], candidate=found[0][1], champion=found[1][1])


def _load(request: Request) -> tuple[Predictor, Predictor]:
    """Load both. A champion's own code is not run: its builder is one of Shoal's, or that of the candidate."""
    load = Predictor.load_own if request.runs_code else Predictor.load
    descriptions = [
        Description.load(Path(folder) / DESCRIPTION) for folder in (request.candidate, request.champion)
    ]
    names = [description.model.name for description in descriptions]
    candidate = load(request.candidate)
    champion = (load if names[0] == names[1] else Predictor.load)(request.champion)
    if candidate.task.name != champion.task.name:
        raise ModelError(f"it was trained for task={champion.task.name}, not {candidate.task.name}")
    labels = candidate.transform.label.name, champion.transform.label.name
    if labels[0] != labels[1]:
        raise ModelError(f"it predicts '{labels[1]}', not '{labels[0]}'")
    losses = [(one.objective.loss, one.objective.class_weight, one.data.weight) for one in descriptions]
    if candidate.task.compared_by == "loss" and losses[0] != losses[1]:
        raise ModelError("it was trained with another loss or other weights")
    return candidate, champion


def _preprocessing(predictor: Predictor, spec: PreprocessingSpec) -> PreprocessingSpec:
    """Return how a model takes the rows of `spec`: the same rows, with its own tokenizer, context and shape."""
    own = predictor.preprocessing
    form = {"context": own.data.context, "shape": own.data.shape, "tokenizer": own.data.tokenizer}
    return replace(own, data=spec.data.model_copy(update=form), seed=spec.seed)


def _trained_by(champion: Predictor, spec: PreprocessingSpec) -> SplitRule | None:
    """Return the rule by which the champion was trained on rows of the same source; None where it was on another.

    Raises:
        ModelError: it was trained on other pieces of the same text, which are not divided by row.
    """
    own = champion.preprocessing
    if own.data.source != spec.data.source:
        return None
    rule = own.split_rule
    if rule != spec.split_rule and spec.tokenizer and not spec.has_label:
        raise ModelError(
            f"it was trained on other pieces of the same text (splits of seed {rule.seed}, {rule.validation:g} and "
            f"{rule.test:g}): set data.split_seed, data.validation_fraction and data.test_fraction as it had them"
        )
    return rule


def _rows(source: Source, spec: PreprocessingSpec, split: str, seen: SplitRule | None) -> Iterator[Block]:
    """Yield the rows of a split, without those that another rule trains on."""
    first = 0
    for source_split, block in source.blocks():
        rows = np.arange(first, first + len(next(iter(block.values()), ())))
        first += len(rows)
        kept = spec.split_rule.assign(rows, source_split, source.has_validation) == SPLITS.index(split)
        if seen is not None:
            kept &= seen.assign(rows, source_split, source.has_validation) != SPLITS.index(TRAIN)
        if kept.any():
            yield {name: column[kept] for name, column in block.items()}


def main(pipe: str) -> None:
    """Measure what standard input asks for, and write it into a pipe."""
    answers = open_answers(pipe)
    logging.getLogger("shoal").setLevel(logging.ERROR)
    request = Request(**json.load(sys.stdin))
    try:
        answer = asdict(measure(request))
    except (ShoalError, OSError, ValueError, RuntimeError) as error:
        answer = {"problem": " ".join(str(error).split()) or type(error).__name__}
    answers.write(json.dumps(answer) + "\n")
    answers.close()


if __name__ == "__main__":
    main(sys.argv[1])
