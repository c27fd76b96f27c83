"""Layers of other sizes than a model's builder gives them, as pruning leaves them: described by shapes, made again."""

from collections.abc import Mapping

from torch import nn

from shoal.errors import ModelError
from shoal.models.resnet import ResidualBlock

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

Shapes = Mapping[str, tuple[int, ...]]


def changed_shapes(model: nn.Module, built: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor, by name, that has another one in the model than in the same model as built."""
    before = built.state_dict()
    return {
        name: tuple(tensor.shape)
        for name, tensor in model.state_dict().items()
        if tensor.shape != before[name].shape
    }


def resize(model: nn.Module, shapes: Shapes) -> None:
    """Give layers of a model that was just built other sizes, in place; their weights are zeros, to be loaded.

    Args:
        shapes: of weights and biases of linear layers, convolutions and group norms, by name.

    Raises:
        ModelError: the model has no such layer, or it is none of these.
    """
    for name, shape in shapes.items():
        path, _, leaf = name.rpartition(".")
        try:
            layer = model.get_submodule(path)
            parameter = layer.get_parameter(leaf)
        except AttributeError:
            raise ModelError(
                f"the model has no '{name}', whose shape {tuple(shape)} its description states: restore the "
                "description from a copy, or prune the model again"
            ) from None
        resized = parameter.new_zeros(tuple(shape))
        setattr(layer, leaf, nn.Parameter(resized, requires_grad=parameter.requires_grad))
        if leaf == "weight":
            _set_sizes(layer, name)
    for module in model.modules():
        if isinstance(module, ResidualBlock):
            module.fit_shortcut()


def _set_sizes(layer: nn.Module, name: str) -> None:
    """Let a layer say of itself what its weight is."""
    if isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = layer.weight.shape
    elif isinstance(layer, CONVOLUTIONS):
        layer.out_channels, layer.in_channels = layer.weight.shape[0], layer.weight.shape[1] * layer.groups
    elif isinstance(layer, nn.GroupNorm):
        layer.num_channels = len(layer.weight)
    else:
        raise ModelError(
            f"'{name}' is the weight of a {type(layer).__name__}, and other sizes are known of linear layers, "
            "convolutions and group norms alone: prune the model again"
        )
