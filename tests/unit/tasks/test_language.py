"""Language modelling: losses against PyTorch's own, masks by the paper's rule and by content alone."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from shoal.data.loader import Batch
from shoal.data.sampler import mix as mix_of_numpy
from shoal.data.tokenizer import MASK, PAD, ByteTokenizer
from shoal.errors import ModelError
from shoal.tasks.content_hash import mix
from shoal.tasks.language import CausalLM, MaskedLM

CONTEXT = 40


def rows(count, seed=0, padded=0):
    tokens = torch.randint(3, 259, (count, CONTEXT + 1), generator=torch.Generator().manual_seed(seed))
    tokens[-1, CONTEXT + 1 - padded :] = PAD
    return Batch(tokens.int(), torch.zeros(count, 0), count)


@pytest.fixture
def causal():
    return CausalLM(ByteTokenizer(), CONTEXT, seed=0)


@pytest.fixture
def masked():
    return MaskedLM(ByteTokenizer(), CONTEXT, seed=0)


def test_each_token_is_guessed_from_the_one_before(causal):
    batch = rows(3)
    view = causal.view(batch, epoch=0)
    assert torch.equal(view.inputs, batch.inputs[:, :-1].long())
    assert torch.equal(view.targets, batch.inputs[:, 1:].long())


def test_loss_perplexity_and_bits_per_byte_are_those_of_the_tokens_that_are_there(causal):
    view = causal.view(rows(3, padded=11), epoch=None)
    outputs = torch.randn(3, CONTEXT, 259, generator=torch.Generator().manual_seed(1))
    there = view.targets != PAD
    expected = F.cross_entropy(outputs[there], view.targets[there])
    found = causal.metrics(causal.sums(outputs, view))
    assert found["loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(expected), rel=1e-4)
    assert found["bits_per_byte"] == pytest.approx(expected.item() / math.log(2), rel=1e-5)  # a byte a token
    assert found["accuracy"] == pytest.approx(
        (outputs.argmax(-1) == view.targets)[there].double().mean().item()
    )


def test_what_rows_add_makes_the_metrics(causal):
    view = causal.view(rows(3, padded=11), epoch=None)
    outputs = torch.randn(3, CONTEXT, 259, generator=torch.Generator().manual_seed(1))
    metrics = causal.metrics(causal.sums(outputs, view))
    for name, terms in causal.row_terms(outputs, view).items():
        assert (terms.above.sum() / terms.below.sum()).item() == pytest.approx(metrics[name], rel=1e-6), name


def test_the_loss_of_full_rows_is_their_sum_of_means(causal):
    view = causal.view(rows(4), epoch=0)
    outputs = torch.randn(4, CONTEXT, 259)
    expected = 4 * F.cross_entropy(outputs.flatten(0, 1), view.targets.flatten())
    torch.testing.assert_close(causal.loss(outputs, view), expected)


def test_sums_over_parts_add_up_to_the_whole(causal):
    batch = rows(6, padded=5)
    outputs = torch.randn(6, CONTEXT, 259)
    whole = causal.sums(outputs, causal.view(batch, None))
    parts = [
        causal.sums(outputs[part], causal.view(Batch(batch.inputs[part], batch.targets[part], 6), None))
        for part in (slice(0, 1), slice(1, 6))
    ]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-5, atol=1e-5)


def test_masks_follow_the_rule_of_the_paper(masked):
    batch = rows(400)
    view = masked.view(batch, epoch=0)
    tokens = batch.inputs[:, :-1].long()
    chosen = view.targets != PAD
    assert (chosen.sum(1) == round(0.15 * CONTEXT)).all()
    assert torch.equal(view.targets[chosen], tokens[chosen])
    assert torch.equal(view.inputs[~chosen], tokens[~chosen])
    of_chosen = view.inputs[chosen]
    assert (of_chosen == MASK).double().mean().item() == pytest.approx(0.8, abs=0.03)
    kept = (of_chosen == tokens[chosen]).double().mean().item()
    assert kept == pytest.approx(0.1, abs=0.03)
    assert (of_chosen >= 1).all()


def test_padding_is_never_masked(masked):
    batch = rows(2, padded=30)
    view = masked.view(batch, epoch=0)
    is_padding = batch.inputs[:, :-1] == PAD
    assert (view.targets[is_padding] == PAD).all()
    assert (view.targets[1] != PAD).sum() == round(0.15 * 11)


def test_a_row_is_masked_alike_wherever_it_lies_anew_each_epoch_and_the_same_when_evaluated(masked):
    batch = rows(50)
    whole = masked.view(batch, epoch=3)
    alone = masked.view(Batch(batch.inputs[20:21], batch.targets[20:21], 50), epoch=3)
    assert torch.equal(whole.inputs[20:21], alone.inputs)
    assert not torch.equal(whole.inputs, masked.view(batch, epoch=4).inputs)
    assert torch.equal(masked.view(batch, None).inputs, masked.view(batch, None).inputs)


def test_the_hash_is_that_of_the_splits():
    numbers = np.arange(-5, 1000, dtype=np.int64)
    expected = mix_of_numpy(numbers.astype(np.uint64)).astype(np.int64)
    assert np.array_equal(mix(torch.from_numpy(numbers)).numpy(), expected)


def test_outputs_of_another_vocabulary_are_refused(causal):
    view = causal.view(rows(2), epoch=0)
    with pytest.raises(ModelError, match=r"it must return \(2, 40, 259\)"):
        causal.loss(torch.zeros(2, CONTEXT, 100), view)
