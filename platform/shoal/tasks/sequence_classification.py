"""One class out of several for a row of tokens."""

from dataclasses import replace
from typing import Self

from shoal.data.config import DataConfig
from shoal.data.loader import Batch
from shoal.data.preprocessing import Transform
from shoal.data.tree import only_tensor
from shoal.tasks.base import EvaluationRows
from shoal.tasks.classification import Classification

MAX_TOKENS = 1 << 16  # that are evaluated at a time


class SequenceClassification(Classification):
    """One class for each text."""

    name = "sequence_classification"
    takes_text = True

    @classmethod
    def evaluation_rows(cls, sample: tuple[int, ...], outputs: int) -> EvaluationRows:
        rows = super().evaluation_rows(sample, outputs)
        return EvaluationRows(rows.few, max(1, min(rows.most, MAX_TOKENS // sample[0])))

    @classmethod
    def build(cls, transform: Transform, data: DataConfig, seed: int) -> Self:
        return cls(transform.outputs, as_token_ids)


def as_token_ids(batch: Batch, epoch: int | None) -> Batch:
    """Return the batch with inputs as int64, which embeddings index by; rows are stored in fewer bytes."""
    return replace(batch, inputs=only_tensor(batch.inputs).long())
