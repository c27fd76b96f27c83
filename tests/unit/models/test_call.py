"""How inputs of several tensors reach a forward."""

import pytest
import torch
from torch import nn

from shoal.models.call import call_model, forward_parameters

ONE, OTHER = torch.ones(2), torch.full((2,), 5.0)


class Returns(nn.Module):
    """Returns what its forward received."""


class ByName(Returns):
    def forward(self, image, text, mask=None):
        return {"image": image, "text": text, "mask": mask}


class OneBatch(Returns):
    def forward(self, batch):
        return batch


class OneBatchAndMore(Returns):
    def forward(self, batch, **more):
        return batch, more


class AnyName(Returns):
    def forward(self, **named):
        return named


class AnyPlace(Returns):
    def forward(self, *parts):
        return parts


@pytest.mark.parametrize("names", [("image", "text"), ("text", "image", "mask")])
def test_a_dict_whose_keys_are_parameters_is_spread(names):
    found = call_model(ByName(), dict.fromkeys(names, ONE))
    assert [name for name in found if found[name] is ONE] == sorted(
        names, key=["image", "text", "mask"].index
    )


def test_any_other_dict_is_the_one_argument():
    inputs = {"image": ONE, "text": OTHER}
    assert call_model(OneBatch(), inputs) is inputs
    assert call_model(OneBatchAndMore(), inputs) == (inputs, {})
    assert call_model(AnyName(), inputs) == inputs


def test_a_tuple_is_spread_where_forward_takes_as_many():
    assert call_model(ByName(), (ONE, OTHER)) == {"image": ONE, "text": OTHER, "mask": None}
    assert call_model(AnyPlace(), (ONE, OTHER)) == (ONE, OTHER)
    assert call_model(OneBatch(), (ONE, OTHER)) == (ONE, OTHER)
    assert call_model(nn.Identity(), (ONE, OTHER)) == (ONE, OTHER)


def test_one_tensor_is_one_argument():
    assert call_model(OneBatch(), ONE) is ONE


def test_what_wraps_a_model_takes_what_the_model_takes():
    model = ByName()
    wrapper = AnyPlace()
    wrapper.forward = lambda *places, **named: model(*places, **named)
    assert call_model(wrapper, {"image": ONE, "text": OTHER}, model)["text"] is OTHER


def test_a_compiled_forward_has_the_parameters_of_the_plain_one():
    model = ByName()
    model.forward = torch.compile(model.forward)
    assert [parameter.name for parameter in forward_parameters(model)] == ["image", "text", "mask"]
