"""All that explains one model: global importance, single rows, checks and curves."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from shoal.data.preprocessing import Transform
from shoal.data.tokenizer import PAD, tokenizer_from_json
from shoal.explain import checks
from shoal.explain.attribution import Attribution, Method, attribute
from shoal.explain.columns import cells_of, spell
from shoal.explain.faithfulness import Curves, curves
from shoal.explain.importance import Importance, mean_with_interval, permutation_importance
from shoal.explain.rows import Rows
from shoal.explain.subject import Subject
from shoal.storage.records import ColumnImportance, ExplainedRow, ExplanationCheck

NAMED = 50  # columns or tokens of the record, and units of a row in it
FEWEST_TOKENS = 3  # occurrences of a token that is listed


class LocalRow(NamedTuple):
    """One row: its raw values as text [units], attributions [units], and what is recorded of it."""

    cells: list[str]
    values: np.ndarray
    inputs: np.ndarray
    record: ExplainedRow

    @property
    def failed(self) -> list[ExplanationCheck]:
        return [check for check in self.record.checks if not check.is_passed]


@dataclass(frozen=True, eq=False)
class Explanation:
    """What was found.

    Attributes:
        attribution: of all rows.
        permutation: of tables.
        checks: of all rows together.
    """

    subject: Subject
    method: Method
    rows: Rows
    attribution: Attribution
    importance: list[ColumnImportance]
    local: list[LocalRow]
    checks: list[ExplanationCheck]
    curves: Curves

    @property
    def failed(self) -> list[ExplanationCheck]:
        return [check for check in self.checks if not check.is_passed]

    @property
    def pixels(self) -> np.ndarray:
        """The mean absolute attribution of each pixel of images [height, width]."""
        height, width = self.subject.baseline.shape[-2:]
        return self.attribution.values.abs().mean(dim=0).view(height, width).numpy()


def explain_rows(
    subject: Subject, transform: Transform, rows: Rows, method: Method, chosen: dict[int, str], seed: int
) -> Explanation:
    """Explain a model on rows, and some of them one by one.

    Args:
        chosen: numbers of rows, and why each is explained by itself.
    """
    learned = checks.learned(subject, rows)
    found = attribute(subject, method, rows.inputs, rows.targets)
    picked = torch.tensor(list(chosen), dtype=torch.int64)
    single = attribute(subject, method, rows.inputs[picked], rows.targets[picked], is_each_complete=True)
    tried = torch.cat([picked, torch.arange(min(checks.CHECKED_ROWS, len(rows)))])
    values = torch.cat([single.values, found.values[tried[len(picked) :]]])
    correlations = checks.correlations_with_redrawn(
        subject, method, rows.inputs[tried], rows.targets[tried], values, seed
    )
    others = correlations[len(picked) :]
    mean = float(others[~np.isnan(others)].mean()) if not np.isnan(others).all() else float("nan")
    local = [
        _local(subject, transform, rows, number, why, single, place, float(correlations[place]), learned)
        for place, (number, why) in enumerate(chosen.items())
    ]
    return Explanation(
        subject,
        method,
        rows,
        found,
        _importance(subject, transform, rows, found, seed),
        local,
        [checks.completeness(found), checks.randomised_weights(mean), learned],
        curves(subject, rows, found.values, seed),
    )


def _local(
    subject: Subject,
    transform: Transform,
    rows: Rows,
    number: int,
    why: str,
    single: Attribution,
    place: int,
    correlation: float,
    learned: ExplanationCheck,
) -> LocalRow:
    values = single.values[place].numpy()
    cells = cells_of(transform, rows.features.block, number)
    names = [f"{unit} {cell!r}" for unit, cell in zip(subject.units, cells, strict=True)]
    names = names if subject.kind == "text" else list(subject.units)
    order = np.argsort(-np.abs(values))[:NAMED]
    here = Attribution(*(part[place : place + 1] for part in single))
    record = ExplainedRow(
        row=number,
        why=why,
        target=subject.answers.names[int(rows.targets[number])],
        predicted=subject.answers.predicted(rows.outputs[number]),
        label=subject.answers.label(rows.features.labels, number),
        loss=float(rows.losses[number]),
        attributions={names[unit]: float(values[unit]) for unit in order if values[unit]},
        checks=[checks.completeness(here), checks.randomised_weights(correlation), learned],
    )
    return LocalRow(cells, values, rows.inputs[number].numpy(), record)


def _importance(
    subject: Subject, transform: Transform, rows: Rows, found: Attribution, seed: int
) -> list[ColumnImportance]:
    """Return columns or tokens, the largest first; none of images."""
    if subject.kind == "image":
        return []
    if subject.kind == "text":
        return _of_tokens(transform, rows, found)
    of_attribution = mean_with_interval(found.values.abs())
    of_permutation = permutation_importance(subject, rows, seed)
    order = of_attribution.mean.argsort(descending=True).tolist()
    return [
        ColumnImportance(
            name=subject.units[unit],
            **_bounds("attribution", of_attribution, unit),
            **_bounds("permutation", of_permutation, unit),
        )
        for unit in order
    ]


def _bounds(name: str, found: Importance, unit: int) -> dict[str, float]:
    return {
        name: float(found.mean[unit]),
        f"{name}_low": float(found.low[unit]),
        f"{name}_high": float(found.high[unit]),
    }


def _of_tokens(transform: Transform, rows: Rows, found: Attribution) -> list[ColumnImportance]:
    """Return the mean absolute attribution of each token over its occurrences."""
    assert transform.tokenizer is not None
    tokens, magnitudes = rows.inputs.reshape(-1), found.values.abs().reshape(-1)
    counts = torch.bincount(tokens[tokens != PAD])
    listed = (counts >= FEWEST_TOKENS).nonzero()[:, 0].tolist()
    names = spell(listed, tokenizer_from_json(transform.tokenizer).spelling)
    rows_ = [
        ColumnImportance(
            name=repr(name),
            **_bounds("attribution", mean_with_interval(magnitudes[tokens == token][:, None]), 0),
        )
        for token, name in zip(listed, names, strict=True)
    ]
    return sorted(rows_, key=lambda one: -one.attribution)[:NAMED]
