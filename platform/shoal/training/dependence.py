"""What makes a training's result depend on the number of workers, found in the model and in its first step.

Random numbers that a model draws by itself come from generators that each worker has for itself; BatchNorm over a
worker's own rows depends on how many they are. It knows models and generators; it does not know who reads the reasons.
"""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from shoal.distributed.process_group import Collective
from shoal.distributed.sync_batchnorm import has_batchnorm
from shoal.models.row_draws import announced, draw
from shoal.models.row_noise import RowNoise
from shoal.training.checkpoint.contents import random_state

logger = logging.getLogger(__name__)

OWN_DRAWS = (
    "the model draws random numbers of its own in training (of numpy or random, one for all rows, dropout inside "
    "torch's attention or LSTM, ...), which each worker has a generator for"
)
OWN_ROWS = "BatchNorm normalizes over the rows that a worker computes on at a time"
UNKNOWN_ROWS = "dropout on activations of shape {} in which rows of the batch were not found draws by worker"


class Dependence:
    """Why the result depends on the number of workers, as far as is known; rank 0 warns of each reason once."""

    def __init__(
        self, model: nn.Module, collective: Collective, batchnorm_is_of_batch: bool, is_compiled: bool = False
    ) -> None:
        """Look at a model that is ready for training.

        Args:
            collective: of the workers.
            batchnorm_is_of_batch: whether torch's own BatchNorm layers normalize over the global batch.
            is_compiled: whether the compiler has traced the model, which then draws as torch does.
        """
        self._draws_by_row = not is_compiled  # until the first step shows that there is nothing to draw
        self._warns = collective.rank == 0 and collective.data_size > 1
        self._reasons: list[str] = []
        self.is_watched = False
        announced.fallbacks.clear()
        if has_batchnorm(model, of_a_users_own=batchnorm_is_of_batch):
            self._add(OWN_ROWS)

    @property
    def reason(self) -> str | None:
        """Why it does; None where nothing is known to make it."""
        return "; ".join(self._reasons) or None

    def row_noise(self) -> AbstractContextManager[object]:
        """Return the context of forward and backward: random numbers are drawn by row where the model draws any."""
        return RowNoise() if self._draws_by_row else nullcontext()

    def watch(self, forward: Callable[[], Any]) -> Any:
        """Return a forward pass's outputs, and note whether it drew random numbers beside those of row dropout."""
        before = random_state()
        outputs = forward()
        self.is_watched = True
        self._draws_by_row &= RowNoise.has_drawn()
        after = random_state()
        torch.set_rng_state(before["torch"])
        for _ in range(announced.draws):
            draw()
        expected = before | {"torch": torch.get_rng_state()}
        torch.set_rng_state(after["torch"])
        if not _same(expected, after):
            self._add(OWN_DRAWS)
        if announced.fallbacks:
            shapes = ", ".join(str(list(shape)) for shape in sorted(announced.fallbacks))
            self._add(UNKNOWN_ROWS.format(shapes))
        return outputs

    def _add(self, reason: str) -> None:
        self._reasons.append(reason)
        if self._warns:
            logger.warning("the result depends on the number of workers: %s", reason)


def _same(one: Any, other: Any) -> bool:
    """Compare states of random generators."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return all(map(_same, one, other))
    return bool(one == other)
