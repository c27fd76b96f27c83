"""Models that answer by the same columns, pixels or tokens agree; a model agrees with itself wholly."""

import copy

import pytest
import torch

from shoal.compression.agreement import attribution_agreement


def of_other_weights(predictor):
    other = copy.copy(predictor)
    other.model = copy.deepcopy(predictor.model)
    torch.manual_seed(1)
    for parameter in other.model.parameters():
        torch.nn.init.normal_(parameter)
    return other


@pytest.mark.parametrize("kind", ["table", "images", "gpt", "bert"])
def test_a_model_agrees_with_itself_and_not_with_one_of_other_weights(subject, request, kind):
    source = request.getfixturevalue({"gpt": "text", "bert": "text"}.get(kind, kind))
    one = {
        "table": lambda: subject(source, label="y"),
        "images": lambda: subject(source, name="resnet", settings={"width": 8, "depth": 8}, label="y"),
        "gpt": lambda: subject(source, "causal_lm", "gpt", settings={"width": 32}, context=16),
        "bert": lambda: subject(source, "masked_lm", "bert", settings={"width": 32}, context=16),
    }[kind]()
    other = of_other_weights(
        one.predictor
    )  # the original, since of one that is untrained residual branches are zero
    assert attribution_agreement(other, other, one.rows.some) == pytest.approx(1.0)
    found = attribution_agreement(other, one.predictor, one.rows.some)
    assert found is None or abs(found) < 0.8


def test_inputs_without_gradients_have_no_attributions(subject, table):
    one = subject(table, label="y")
    one.predictor.inputs = lambda block: {"a": torch.zeros(2, 3)}
    assert attribution_agreement(one.predictor, one.predictor, one.rows.some) is None
