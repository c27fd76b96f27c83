"""Whose samples a loss that is not finite came from, as all workers find together."""

import math
import pickle

import pytest

from shoal.data.sampler import Lanes
from shoal.training.divergence import describe_samples, diverged, same_losses

WORKERS = 3


class Gathered:
    """One of three workers, which knows what the others gather."""

    def __init__(self, rank, own):
        self.rank, self.size, self._own = rank, WORKERS, own

    def gather(self, value):
        own = [(not math.isfinite(loss), f"w{rank}", part(rank)) for rank, loss in enumerate(self._own)]
        assert own[self.rank][0] == value[0]
        assert own[self.rank][2] == value[2]
        return own


def lanes(worker):
    return Lanes(rows=30, batch_size=6, seed=0, worker=worker, num_workers=WORKERS)


def part(worker):
    return lanes(worker).rows_of(6).tolist()


def error_of(rank, own):
    return diverged(Gathered(rank, own), lanes(rank), 7, own[rank], [0.5, math.nan], 0.01)


@pytest.mark.parametrize("rank", range(WORKERS))
def test_the_one_worker_whose_loss_it_is_is_named_by_all_with_its_samples(rank):
    error = pickle.loads(pickle.dumps(error_of(rank, [1.0, math.inf, 2.0])))
    assert (error.step, error.rank, error.host) == (7, 1, "w1")
    assert error.samples == sorted(part(1))
    assert error.losses == ["3fe0000000000000", "7ff8000000000000"]
    assert str(error).startswith("train/loss is nan at step 7: lower optim.lr (now 0.01)")
    assert f"(training rows {min(part(1))}, {max(part(1))} of worker 1)" in str(error)


def test_where_all_have_lost_it_nobody_stands_out_and_the_samples_are_the_batch():
    error = error_of(0, [math.nan, math.nan, math.nan])
    assert (error.rank, error.host) == (None, None)
    assert error.samples == sorted(part(0) + part(1) + part(2))


def test_samples_are_named_shortly():
    assert describe_samples([4]) == "training row 4"
    assert describe_samples(range(9)) == "training rows 0, 1, 2, 3, 4 and 4 more"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [("ab", "ab", True), ("xab", "ab", True), ("ab", "cb", False), ("", "ab", False)],
)
def test_losses_are_compared_as_far_as_both_are_known(one, other, same):
    assert same_losses(list(one), list(other)) == same
