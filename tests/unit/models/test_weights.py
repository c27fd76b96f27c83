"""Weights as 8-bit integers are those they were made of, to half a step of their channel."""

import torch
from safetensors.torch import save_file

from shoal.models.weights import as_int8, load_weights


def test_integers_stand_for_their_numbers_to_half_a_step_of_each_channel(tmp_path):
    matrix = torch.randn(6, 10) * torch.tensor([1e-3, 1e-2, 0.1, 1, 10, 0])[:, None]
    kernel, bias, places = torch.randn(4, 3, 3, 3), torch.randn(5), torch.arange(12).view(3, 4)
    tensors = {"a.weight": matrix, "b.weight": kernel, "a.bias": bias, "places": places}
    narrow = as_int8(tensors)
    assert {name for name, tensor in narrow.items() if tensor.dtype == torch.int8} == {"a.weight", "b.weight"}
    save_file(narrow, tmp_path / "weights.safetensors")
    found = load_weights(tmp_path / "weights.safetensors")
    assert found.keys() == tensors.keys()
    for name in ("a.weight", "b.weight"):
        steps = tensors[name].flatten(1).abs().amax(1) / 127
        wrong = (found[name] - tensors[name]).flatten(1).abs().amax(1)
        assert (wrong <= 0.5001 * steps).all()
    assert torch.equal(found["a.bias"], bias)
    assert torch.equal(found["places"], places)
    assert not found["a.weight"][5].any()
