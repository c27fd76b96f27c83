"""Unstructured pruning: the weights of the least magnitude become zeros, and stay zeros while the rest is fine-tuned.

The model keeps its shapes. Dense kernels multiply by zeros as by anything else, so it takes as long and as many bytes
as before; only a compressed file is smaller.
"""

from torch import nn
from torch.nn.utils import prune as masks

from shoal.errors import ModelError
from shoal.models.layer_sizes import CONVOLUTIONS
from shoal.models.mup import MUP_ATTRIBUTE


def check_model(model: nn.Module, name: str) -> None:
    """Refuse a model without a weight to prune.

    Raises:
        ModelError: it has neither linear layers nor convolutions, shares their weights, or is in muP.
    """
    if not list(_layers(model)):
        raise ModelError(f"model.name='{name}' has neither linear layers nor convolutions: nothing to prune")
    if hasattr(model, MUP_ATTRIBUTE):
        raise ModelError(
            f"model.name='{name}' is in muP, whose learning rates are of weights without a mask: set "
            "compress.method=structured"
        )
    if len({id(layer.weight) for layer in _layers(model)}) < len(list(_layers(model))):
        raise ModelError(f"model.name='{name}' has layers that share a weight, which no mask can be of")


def mask(model: nn.Module, ratio: float) -> None:
    """Mask the weights of the least magnitude of each layer, in place, until `unmask`."""
    for layer in _layers(model):
        masks.l1_unstructured(layer, "weight", ratio)


def unmask(model: nn.Module) -> None:
    """Leave zeros in the place of masks."""
    for layer in list(_layers(model)):
        masks.remove(layer, "weight")


def _layers(model: nn.Module) -> list[nn.Module]:
    """Return linear layers and convolutions, but not those whose weight is an embedding's."""
    embeddings = {id(one.weight) for one in model.modules() if isinstance(one, nn.Embedding)}
    return [
        layer
        for layer in model.modules()
        if isinstance(layer, (nn.Linear, *CONVOLUTIONS)) and id(layer.weight) not in embeddings
    ]
