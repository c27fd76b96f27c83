"""Tests of a difference: against tables and formulas."""

import numpy as np
import pytest

from shoal.registry.significance import bootstrap, mcnemar, ratio


def right(*counts):
    """Two classifiers: rows that both, the first alone, the second alone and neither have right."""
    pairs = [(True, True), (True, False), (False, True), (False, False)]
    rows = [pair for pair, count in zip(pairs, counts, strict=True) for _ in range(count)]
    return np.array(rows).T


@pytest.mark.parametrize(
    ("only_one", "only_other", "p_value"),
    # Twice the binomial tail at 1/2: 2 * (1 + 10) / 2**10, 2 * (1 + 5 + 10 + 10 + 5 + 1) / 2**5 at most 1, ...
    [(9, 1, 22 / 1024), (1, 9, 22 / 1024), (5, 0, 2 / 32), (5, 5, 1.0), (0, 0, 1.0)],
)
def test_mcnemars_p_value_is_the_binomial_tail_of_rows_that_one_alone_has_right(
    only_one, only_other, p_value
):
    found = mcnemar(*right(50, only_one, only_other, 7))
    assert (found.only_candidate, found.only_champion) == (only_one, only_other)
    assert found.p_value == pytest.approx(p_value)


def terms(values):
    return np.stack([values, np.ones_like(values)], axis=1)


@pytest.fixture
def pair():
    """Losses of two models on 400 rows, which vary by row far more than between the models."""
    draw = np.random.default_rng(1)
    hard = draw.exponential(size=400)
    return terms(hard + draw.normal(0.05, 0.2, 400)), terms(hard + draw.normal(0.0, 0.2, 400))


def test_the_interval_is_that_of_the_mean_of_paired_differences(pair):
    difference = pair[0][:, 0] - pair[1][:, 0]
    mean, error = difference.mean(), difference.std() / 20
    found = bootstrap(*pair, exponent=1.0, is_paired=True)
    assert (found.low, found.high) == pytest.approx((mean - 1.96 * error, mean + 1.96 * error), abs=0.003)
    assert found == bootstrap(*pair, exponent=1.0, is_paired=True)


def test_rows_that_are_not_paired_tell_less(pair):
    paired, apart = (bootstrap(*pair, exponent=1.0, is_paired=is_paired) for is_paired in (True, False))
    assert paired.p_value < 0.05 < apart.p_value
    assert apart.high - apart.low > 3 * (paired.high - paired.low)


def test_the_same_model_differs_by_chance(pair):
    found = bootstrap(pair[0], pair[0], exponent=0.5, is_paired=True)
    assert (found.low, found.high, found.p_value) == (0.0, 0.0, 1.0)


def test_a_metric_is_a_power_of_a_ratio_of_sums():
    assert ratio(np.array([[9.0, 4.0], [1.0, 0.0]]), 0.5) == pytest.approx([1.5, np.inf])
    assert np.isnan(ratio(np.zeros(2), 1.0))
