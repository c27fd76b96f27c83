"""Two versions of a registered model on the same rows: the one comparison by which champions are made.

Each is measured in a process of its own (`shoal.registry.measure`), which needs torch and the data; this one needs
neither. `champion` decides by it at the end of a training, `shoal.workflows.promote` when a person asks.
"""

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TextIO

import numpy as np

from shoal.errors import ModelError
from shoal.processes import start_answering
from shoal.registry.significance import Bootstrap, Mcnemar, bootstrap, mcnemar, ratio

Code = Literal["no", "own", "trusted"]
TIMEOUT_S = 1800.0
FEWEST_ROWS = 20  # of a slice that is looked at


@dataclass(frozen=True)
class Request:
    """What is compared.

    Attributes:
        candidate, champion: folders of weights and description.
        splits: of the candidate's data: the first that has rows which the champion was not trained on is measured.
        code: whose code may run: of no model, of this run (its builder, its function of data), or of both models,
            which a person trusts.
        is_champion: which of the two a process measures.
        rows_file: where it writes what each row adds.
    """

    candidate: str
    champion: str
    splits: Sequence[str]
    code: Code = "no"
    is_champion: bool = False
    rows_file: str = ""


class DividedColumn(NamedTuple):
    """A column that divides rows.

    Attributes:
        labels: of the groups, in words.
        codes: int [n], each row's group; -1: none.
    """

    name: str
    labels: list[str]
    codes: np.ndarray


@dataclass(frozen=True)
class Measured:
    """What one model measures.

    Attributes:
        source: `data.source` of the rows; split: of it.
        digest: of which rows these are, and of what is to be predicted.
        metrics: all that its task reports, and `train.metrics`.
        terms: by metric that versions can be compared by: float64 [rows, 2], what each row adds to two sums.
        exponents: by metric: it is (first sum / second sum) ** exponent.
        is_higher_better: by metric.
        compared_by: the metric that is the same for models that see the rows in another form.
        has_classes: whether a row is right or wrong, by `accuracy`.
        columns: that divide the rows.
    """

    source: str
    split: str
    rows: int
    digest: str
    metrics: dict[str, float]
    terms: dict[str, np.ndarray]
    exponents: dict[str, float]
    is_higher_better: dict[str, bool]
    compared_by: str
    has_classes: bool
    columns: list[DividedColumn]


@dataclass(frozen=True)
class Slice:
    """A group of rows, on which both models measure a metric; `worse_by` is negative where the candidate is better."""

    column: str
    value: str
    rows: int
    candidate: float
    champion: float
    worse_by: float
    p_value: float | None = None


@dataclass(frozen=True)
class Comparison:
    """Two models on the same rows."""

    candidate: Measured
    champion: Measured

    @property
    def is_paired(self) -> bool:
        """Whether row i is the same in both; rows of text are other pieces to another tokenizer."""
        return self.candidate.digest == self.champion.digest

    @property
    def metrics(self) -> list[str]:
        """The metrics by which they can be compared."""
        return [name for name in self.candidate.terms if name in self.champion.terms]

    @property
    def usual_metric(self) -> str:
        """Accuracy where a row is right or wrong, else what versions are compared by at the end of a training."""
        one = self.candidate
        is_counted = one.has_classes and "accuracy" in self.metrics
        usual = "accuracy" if is_counted else one.compared_by
        return usual if usual in self.metrics else self.metrics[0]

    def worse_by(self, metric: str, candidate: float, champion: float) -> float:
        """Return by how much the candidate is worse."""
        return champion - candidate if self.candidate.is_higher_better[metric] else candidate - champion

    def test(self, metric: str, rows: np.ndarray | None = None) -> Mcnemar | Bootstrap:
        """Test whether the models differ by a metric.

        Args:
            rows: bool [n]: on some of the rows.
        """
        ours, theirs = (one.terms[metric] for one in (self.candidate, self.champion))
        if rows is not None:
            ours, theirs = ours[rows], theirs[rows]
        if self.candidate.has_classes and metric == "accuracy" and self.is_paired:
            return mcnemar(ours[:, 0] > 0.5, theirs[:, 0] > 0.5)
        return bootstrap(ours, theirs, self.candidate.exponents[metric], self.is_paired)

    def slices(self, metric: str, most: int) -> list[Slice]:
        """Return the groups of rows on which the candidate is worst beside the champion, worst first, tested."""
        if not self.is_paired:
            return []
        found = sorted(
            ((one, rows) for one, rows in self._all_slices(metric)), key=lambda pair: -pair[0].worse_by
        )
        return [replace(one, p_value=self.test(metric, rows).p_value) for one, rows in found[:most]]

    def _all_slices(self, metric: str) -> list[tuple[Slice, np.ndarray]]:
        ours, theirs = (one.terms[metric] for one in (self.candidate, self.champion))
        exponent, found = self.candidate.exponents[metric], []
        for name, labels, codes in self.candidate.columns:
            for number, label in enumerate(labels):
                rows = codes == number
                if (count := int(rows.sum())) < FEWEST_ROWS:
                    continue
                one, other = (float(ratio(terms[rows].sum(axis=0), exponent)) for terms in (ours, theirs))
                if np.isfinite([one, other]).all():
                    found.append(
                        (Slice(name, label, count, one, other, self.worse_by(metric, one, other)), rows)
                    )
        return found


def compare(request: Request) -> Comparison:
    """Measure both models, each in a process of its own.

    Raises:
        ModelError: one of them cannot be measured on these rows; the message says why.
    """
    with tempfile.TemporaryDirectory(prefix="shoal-compare-") as scratch:
        sides = [
            replace(request, is_champion=is_champion, rows_file=f"{scratch}/{is_champion}.npz")
            for is_champion in (False, True)
        ]
        started = [start_answering(["-m", "shoal.registry.measure"], stderr=subprocess.PIPE) for _ in sides]
        try:
            for side, (process, _) in zip(sides, started, strict=True):  # both begin before one is waited for
                assert process.stdin is not None
                process.stdin.write(json.dumps(asdict(side)))
                process.stdin.close()
                process.stdin = None
            found = [_answer(*one, Path(side.rows_file)) for one, side in zip(started, sides, strict=True)]
        finally:
            for process, answers in started:
                process.kill()
                process.communicate()
                answers.close()
    return Comparison(*found)


def _answer(process: "subprocess.Popen[str]", answers: TextIO, rows_file: Path) -> Measured:
    try:
        _, err = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise ModelError(f"measuring it took more than {TIMEOUT_S:.0f} s") from None
    if process.returncode:
        raise ModelError((err.strip().splitlines() or ["no output"])[-1])
    answer: Mapping[str, Any] = json.loads(answers.readline())
    if "problem" in answer:
        raise ModelError(answer["problem"])
    with np.load(rows_file, allow_pickle=False) as arrays:
        terms = {name: arrays[f"terms{number}"] for number, name in enumerate(answer["exponents"])}
        columns = [
            DividedColumn(name, labels, codes)
            for (name, labels), codes in zip(answer["columns"], arrays["codes"], strict=True)
        ]
    return Measured(**{**answer, "terms": terms, "columns": columns})
