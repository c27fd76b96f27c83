import pytest
import torch
from transformers.utils import ModelOutput

from shoal.errors import ModelError
from shoal.tasks.outputs import logits_of

X, Y = torch.zeros(2, 3), torch.ones(2)


@pytest.mark.parametrize(
    "outputs",
    [
        X,
        {"loss": Y, "logits": X},
        {"hidden": Y, "output": X},
        {"anything": X, "note": "text"},
        (X, Y),
        ["text", X],
        ModelOutput(logits=X, hidden=Y),
    ],
)
def test_the_tensor_that_a_task_reads(outputs):
    assert logits_of(outputs) is X


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"mean": X, "variance": Y}, "a dict of 'mean', 'variance'"),
        ({}, "a dict of nothing"),
        (("a", 1), r"a tuple of 2 \(str, int\)"),
        (None, "a NoneType"),
    ],
)
def test_what_is_not_clear_is_refused_with_what_is_there(outputs, message):
    with pytest.raises(ModelError, match=f"the model returned {message}: .*'logits'"):
        logits_of(outputs)
