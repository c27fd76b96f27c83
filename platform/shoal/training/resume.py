"""A training loop starts from its seed, or resumes from the newest sound checkpoint, random states included."""

import random

import numpy as np
import torch

from shoal.training.checkpoint.contents import TrainingProgress, set_random_state
from shoal.training.checkpoint.restore import restore
from shoal.training.checkpoint.store import CheckpointStore
from shoal.training.loop import TrainingLoop


def resume_or_start(loop: TrainingLoop, store: CheckpointStore, seed: int) -> TrainingProgress:
    """Restore the newest sound checkpoint, the same on every worker, or seed the random states.

    Random states are restored where the data are divided among as many workers as before. Otherwise they are seeded
    from the seed and the step.

    Raises:
        CheckpointError: no checkpoint is sound, or the one found is of another model.
    """
    collective = loop.collective
    if collective.rank == 0:
        store.remove_parts()  # of a process that was killed; they may fill the disk
    checkpoint = store.open_latest(collective)  # the driver has reported corrupt ones
    _seed_random_states(seed, collective.data_rank)
    if checkpoint is None:
        return TrainingProgress()
    states = checkpoint.random()
    progress = restore(checkpoint, loop.model, loop.optimizer, loop.scaler, loop.ema, loop.user_callbacks)
    if len(states) == collective.data_size:
        set_random_state(states[collective.data_rank])
    else:
        _seed_random_states(seed + progress.step, collective.data_rank)
    return progress


def _seed_random_states(seed: int, rank: int) -> None:
    """Seed torch, NumPy and Python from the seed and the rank: each part of the data draws numbers of its own."""
    mixed = int(np.random.SeedSequence([seed, rank]).generate_state(1)[0])
    torch.manual_seed(mixed)
    np.random.seed(mixed)
    random.seed(mixed)
