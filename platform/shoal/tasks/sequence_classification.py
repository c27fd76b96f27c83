"""One class out of several for a row of tokens."""

from dataclasses import replace
from typing import Self

from shoal.data.config import DataConfig
from shoal.data.loader import Batch
from shoal.data.preprocessing import Transform
from shoal.tasks.classification import Classification


class SequenceClassification(Classification):
    """One class for each text."""

    name = "sequence_classification"
    takes_text = True

    @classmethod
    def build(cls, transform: Transform, data: DataConfig, seed: int) -> Self:
        return cls(transform.outputs, as_token_ids)


def as_token_ids(batch: Batch, epoch: int | None) -> Batch:
    """Return the batch with inputs as int64, which embeddings index by; rows are stored in fewer bytes."""
    return replace(batch, inputs=batch.inputs.long())
