"""The random states that a user's own code draws from: torch's, NumPy's and Python's `random`.

It knows the generators; it does not know who draws from them. `numpy.random.default_rng()` without a seed is none of
them: it draws from the operating system.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from shoal import devices


def seed_random_states(seed: int) -> None:
    """Seed torch, NumPy and Python's `random`.

    Args:
        seed: from 0 to below 2**63.
    """
    # torch.manual_seed takes 0.4 ms where CUDA is not in use yet, and grows a list of calls that wait for it.
    torch.default_generator.manual_seed(seed)
    devices.seed_all(seed)
    # Both are the same generator, which would draw the same numbers from the same words.
    np.random.seed([seed & 0xFFFF_FFFF, seed >> 32, 1])
    random.seed(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Have code inside draw from generators that begin at the seed; the states before are restored on exit."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with devices.fork_rng(of_all=True):
        seed_random_states(seed)
        try:
            yield
        finally:
            np.random.set_state(numpy_state)
            random.setstate(python_state)
