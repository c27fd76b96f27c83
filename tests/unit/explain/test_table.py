"""Columns that decide are found by name, and a map that does not depend on the weights is refused."""

import numpy as np
import pytest
import torch
from torch import nn

from shoal.explain.attribution import METHODS, TOLERANCE, attribute

from .conftest import PLANTED


def found_columns(explanation, by):
    ranked = sorted(explanation.importance, key=lambda one: -getattr(one, by))
    return {one.name for one in ranked[: len(PLANTED)]}


@pytest.mark.parametrize("label", ["sold", "price"])
def test_planted_columns_are_found_by_attribution_and_by_permutation_and_all_checks_pass(
    trained, explained, label
):
    explanation = explained(trained(label))
    assert explanation.failed == []
    assert found_columns(explanation, "attribution") == set(PLANTED)
    assert found_columns(explanation, "permutation") == set(PLANTED)
    assert explanation.curves.is_better_than_random


@pytest.mark.parametrize("method", METHODS)
def test_each_method_finds_them(trained, explained, method):
    assert found_columns(explained(trained(), method), "attribution") == set(PLANTED)
