"""Layers of other sizes than a model's builder gives them, as pruning leaves them: described by shapes, made again."""

from collections.abc import Mapping

from torch import Tensor, nn

from shoal.errors import ModelError
from shoal.models.resnet import ResidualBlock

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

Shapes = Mapping[str, tuple[int, ...]]


def changed_shapes(model: nn.Module, built: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor, by name, that has another one in the model than in the same model as built."""
    before = built.state_dict()
    return {
        name: tuple(tensor.shape)
        for name, tensor in model.state_dict().items()
        if tensor.shape != before[name].shape
    }


def is_resizable(layer: object) -> bool:
    """Whether a layer can be of another size than its builder makes it: convolutions of groups only if depthwise."""
    if isinstance(layer, CONVOLUTIONS):
        return layer.groups in (1, layer.out_channels)
    return is_transposed_linear(layer) or isinstance(
        layer, (nn.Linear, nn.GroupNorm, nn.LayerNorm, *BATCH_NORMS)
    )


def is_transposed_linear(layer: object) -> bool:
    """Whether a layer is the linear one of GPT-2 in `transformers`, whose weight is [inputs, outputs]."""
    return (type(layer).__module__, type(layer).__name__) == ("transformers.pytorch_utils", "Conv1D")


def resize(model: nn.Module, shapes: Shapes) -> None:
    """Give layers of a model that was just built other sizes, in place; their weights are zeros, to be loaded.

    Args:
        shapes: of the tensors of layers that are resizable, by name.

    Raises:
        ModelError: the model has no such layer, or it is not resizable.
    """
    for name, shape in shapes.items():
        path, _, leaf = name.rpartition(".")
        try:
            layer = model.get_submodule(path)
            tensor = getattr(layer, leaf)
            is_parameter = isinstance(tensor, nn.Parameter)
            resized = tensor.new_zeros(tuple(shape))
        except AttributeError:
            raise ModelError(
                f"the model has no '{name}', whose shape {tuple(shape)} its description states: restore the "
                "description from a copy, or prune the model again"
            ) from None
        if not is_resizable(layer):
            raise ModelError(
                f"'{name}' is of a {type(layer).__name__}, and other sizes are known of linear layers, convolutions "
                "and norms alone: prune the model again"
            )
        setattr(
            layer,
            leaf,
            nn.Parameter(resized, requires_grad=tensor.requires_grad) if is_parameter else resized,
        )
        _set_sizes(layer, resized, leaf)
    for module in model.modules():
        if isinstance(module, ResidualBlock):
            module.fit_shortcut()


def _set_sizes(layer: nn.Module, tensor: Tensor, leaf: str) -> None:
    """Let a layer say of itself what one of its tensors is."""
    if isinstance(layer, BATCH_NORMS):
        layer.num_features = len(tensor)
    elif leaf != "weight":
        return
    elif isinstance(layer, nn.Linear):
        layer.out_features, layer.in_features = tensor.shape
    elif is_transposed_linear(layer):
        layer.nx, layer.nf = tensor.shape  # type: ignore[assignment,attr-defined]
    elif isinstance(layer, CONVOLUTIONS):
        if layer.groups > 1:  # depthwise: as many groups as channels
            layer.groups = len(tensor)
        layer.out_channels, layer.in_channels = len(tensor), tensor.shape[1] * layer.groups
    elif isinstance(layer, nn.GroupNorm):
        layer.num_channels = len(tensor)
    elif isinstance(layer, nn.LayerNorm):
        layer.normalized_shape = tuple(tensor.shape)
