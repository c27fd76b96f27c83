"""Initial weights of files: what fits is loaded, what does not is named."""

import copy

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from shoal.errors import ModelError
from shoal.models.config import ModelConfig
from shoal.models.pretrained import NOT_LOADED, load_pretrained
from shoal.models.registry import build_model
from shoal.models.size import measure_size


def make(width=8, seed=1, **config):
    return build_model(ModelConfig(width=width, depth=1, **config), (4,), 3, seed)


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def wrapped(prefix):
    return lambda state: {f"{prefix}{name}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    "put",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state, "optimizer": {}},
        lambda state: {"state_dict": wrapped("model.")(state)},
        wrapped("module."),
        wrapped("_orig_mod."),
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_a_state_dict_that_a_script_saved_is_loaded_under_whatever_key_and_prefix(tmp_path, put, suffix):
    trained = make(seed=0).state_dict()
    torch.save(put(trained), tmp_path / f"weights{suffix}")
    model = make(init=str(tmp_path / f"weights{suffix}"))
    assert same(model.state_dict(), trained)
    assert not hasattr(model, NOT_LOADED)


def test_a_single_file_of_safetensors_is_loaded(tmp_path):
    trained = make(seed=0).state_dict()
    save_file(trained, tmp_path / "weights.safetensors")
    assert same(make(init=str(tmp_path / "weights.safetensors")).state_dict(), trained)


def test_what_fits_is_loaded_and_the_rest_is_named_in_one_note_that_the_size_has(tmp_path):
    file, fresh = tmp_path / "weights.pt", make()
    trained = make(seed=0).state_dict()
    first, *others = trained
    saved = {first: trained[first], "other": torch.zeros(2), others[0]: torch.zeros(8, 2)}
    torch.save(saved, file)
    model = make(init=str(file))
    assert torch.equal(model.state_dict()[first], trained[first])
    assert all(torch.equal(model.state_dict()[name], fresh.state_dict()[name]) for name in others)
    note = getattr(model, NOT_LOADED)
    assert note == measure_size(model, torch.zeros(1, 4)).not_loaded
    assert f"loaded 1 of {len(trained)} tensors" in note
    assert f"not there, left as initialized: {', '.join(sorted(others[1:]))}" in note
    assert "there, not in the model: other" in note
    assert f"{others[0]} (8, 2) there, {tuple(trained[others[0]].shape)} in the model" in note


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"other": torch.zeros(2)}, "holds none of the model's tensors: it has other"),
        ({"epoch": 3}, "holds a dict, no state_dict: save model.state_dict"),
        ([1.0], "holds a list, no state_dict"),
        (nn.Linear(2, 2), "does not read as weights .UnpicklingError.*save model.state_dict"),
        (b"no file of torch", "does not read as weights"),
    ],
)
def test_what_holds_no_weights_is_refused_without_running_its_code(tmp_path, value, says):
    file = tmp_path / "weights.pt"
    if isinstance(value, bytes):
        file.write_bytes(value)
    else:
        torch.save(value, file)
    with pytest.raises(ModelError, match=says):
        make(init=str(file))


def test_a_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "weights.onnx").write_bytes(b"")
    with pytest.raises(ModelError, match=r"is a file of another kind: name a \.safetensors file"):
        load_pretrained(make(), str(tmp_path / "weights.onnx"))


class Frozen(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        self.head = nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 3))

    def forward(self, x):
        return self.head(self.encoder(x))


def frozen(*patterns):
    return build_model(ModelConfig(freeze=list(patterns)), (4,), 3, 0, builder=Frozen)


def trained_names(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("pattern", ["encoder", "encoder.*", "enc*"])
def test_frozen_parameters_and_running_statistics_stay_and_dropout_goes_on(pattern):
    model = frozen(pattern)
    assert trained_names(model) == {"head.0.weight", "head.0.bias", "head.1.weight", "head.1.bias"}
    for _ in range(2):
        model.eval()
        model.train()
        assert [layer.training for layer in model.encoder] == [True, False, True]
        assert model.head[0].training
    before = copy.deepcopy(model.state_dict())
    model(torch.randn(16, 4)).sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    after = model.state_dict()
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    assert {name for name in moved if name.startswith("encoder")} == set()
    assert {"head.0.running_mean", "head.1.weight"} <= moved


def test_a_copy_of_a_frozen_model_is_frozen_by_itself():
    model = frozen("encoder")
    other = copy.deepcopy(model)
    assert not other.train().encoder[1].training
    assert other.encoder[1].train.__self__ is other.encoder[1]


def test_a_layer_keeps_its_statistics_only_where_all_of_it_is_frozen():
    assert frozen("head.0.weight").train().head[0].training
    assert not frozen("head.0.weight", "*.0.bias").train().head[0].training


def test_a_pattern_that_freezes_nothing_is_refused_with_the_nearest_name():
    with pytest.raises(
        ModelError, match=r"names 'encode', which matches no parameter .did you mean 'encoder'"
    ):
        frozen("encode")
