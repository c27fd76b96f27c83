import random

import numpy as np
import pytest
import torch

from shoal.data.random_state import seed_random_states, seeded

SEEDS = [0, 1, 2**31, 2**63 - 1]  # torch takes the last 32 bits of a seed


def draws():
    return (random.random(), np.random.rand(), torch.rand(1).item())


def fail_with(seed, expected):
    with seeded(seed):
        assert draws() == expected
        raise KeyError


@pytest.mark.parametrize("seed", SEEDS)
def test_a_seed_decides_what_all_three_draw(seed):
    seed_random_states(seed)
    first = draws()
    draws()
    seed_random_states(seed)
    assert draws() == first


def test_seeds_draw_differently():
    found = []
    for seed in SEEDS:
        seed_random_states(seed)
        found += draws()
    assert len(set(found)) == 3 * len(SEEDS)


def test_what_is_drawn_inside_is_of_the_seed_and_the_callers_numbers_go_on_even_after_an_error():
    seed_random_states(3)
    inside = draws()
    seed_random_states(1)
    expected = [draws(), draws()]
    seed_random_states(1)
    found = [draws()]
    with pytest.raises(KeyError):
        fail_with(3, inside)
    assert [*found, draws()] == expected
