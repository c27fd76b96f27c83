"""Weights that differ from worker to worker by a bit are refused, and the worker is named."""

import pickle

import pytest
import torch
from torch import nn

from shoal.errors import WeightsDifferError
from shoal.runs.failure_policy import account_of, decide, fault_of
from shoal.training.checkpoint.agreement import WeightSums, check_agreement, weight_sums
from shoal.training.clock import Clock


def make(dtype=torch.float32):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)).to(dtype)


def flipped(bit, dtype=torch.float32):
    """The sums of a model one bit of which is not what it should be."""
    model = make(dtype)
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[model[0].weight.element_size()]
    weights = model[1].weight.data.view(integers)
    weights[1, 3] ^= torch.tensor(1, dtype=integers) << bit
    return WeightSums("w2", weight_sums(model).sums)


@pytest.mark.parametrize(
    ("dtype", "bits"),
    [(torch.float32, (0, 22, 30, 31)), (torch.bfloat16, (0, 14)), (torch.float64, (0, 51, 62))],
)
def test_any_bit_is_noticed_and_its_worker_is_named(dtype, bits):
    model = make(dtype)
    usual = WeightSums("w0", weight_sums(model).sums)
    check_agreement(model, [usual, usual, usual], 7)
    for bit in bits:
        with pytest.raises(
            WeightsDifferError, match=r"step 7 differ: '1\.weight' on worker 1 on w2 is not"
        ) as raised:
            check_agreement(model, [usual, flipped(bit, dtype), usual], 7)
        assert (raised.value.rank, raised.value.host) == (1, "w2")


def test_of_two_workers_none_stands_out():
    model = make()
    usual = WeightSums("w0", weight_sums(model).sums)
    with pytest.raises(
        WeightsDifferError, match=r"not the same on workers 0 on w0, 1 on w2, and none"
    ) as raised:
        check_agreement(model, [usual, flipped(3)], 7)
    assert raised.value.rank is None


def test_a_model_without_parameters_agrees():
    check_agreement(nn.ReLU(), [weight_sums(nn.ReLU())] * 2, 1)


def test_numbers_that_are_none_agree():
    model = make()
    model[0].weight.data.fill_(float("nan"))
    check_agreement(model, [weight_sums(model)] * 2, 1)


@pytest.mark.parametrize(("rank", "host"), [(2, "w2"), (None, None)])
def test_it_is_a_failure_of_a_host_and_tried_again(rank, host):
    error = pickle.loads(pickle.dumps(WeightsDifferError("weights at step 7 differ: ...", rank, host)))
    fault = fault_of(account_of(error, Clock(), rank=0))
    decision = decide([fault], None, 5, max_failures=3)
    assert decision.retries
    assert decision.record.kind == "bad host"
    assert (
        decision.record.message
        == "bad host: weights at step 7 differ: ...; resuming from the checkpoint of step 5, failure 1 of 3"
    )
    assert decision.record.root is not None
    assert (decision.record.root.rank, decision.record.root.host) == (rank, host)
