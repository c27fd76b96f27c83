"""The size of a model: parameters, bytes, and floating-point operations of a forward pass."""

import math
from dataclasses import dataclass

import torch
from torch import nn

from shoal.data.tree import Tree, describe
from shoal.errors import ModelError
from shoal.models.call import call_model
from shoal.models.flops import flop_counter
from shoal.models.pretrained import NOT_LOADED


@dataclass(frozen=True)
class ModelSize:
    """A model's parameters, their bytes with buffers, and the FLOPs of a forward pass over one sample.

    Attributes:
        trained: parameters that are not frozen.
        not_loaded: what of `model.init` did not fit, in words; None where all did.
    """

    parameters: int
    bytes: int
    flops_per_sample: int
    trained: int | None = None
    not_loaded: str | None = None

    def __str__(self) -> str:
        is_frozen = self.trained is not None and self.trained < self.parameters
        return (
            f"{self.parameters:,} parameters{f' ({self.trained:,} trained)' if is_frozen else ''}, "
            f"{readable(self.bytes)}B, "
            f"{readable(self.flops_per_sample)}FLOPs forward per sample"
        )


def measure_size(model: nn.Module, sample: Tree) -> ModelSize:
    """Count parameters, bytes (with buffers) and the multiply-adds of one forward pass, 2 FLOPs each.

    Args:
        sample: [1, *inputs].

    Raises:
        ModelError: the model does not take such a sample.
    """
    was_training = model.training
    model.eval()
    counter = flop_counter()
    try:
        with torch.no_grad(), counter:
            call_model(model, sample)
    except Exception as error:
        raise ModelError(
            f"the model does not take inputs of {describe(sample)} ({type(error).__name__}: "
            f"{' '.join(str(error).split())}): its builder receives `inputs` and `outputs` if its signature names them"
        ) from error
    finally:
        model.train(was_training)
    tensors = [*model.parameters(), *model.buffers()]
    return ModelSize(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        bytes=sum(tensor.numel() * tensor.element_size() for tensor in tensors),
        flops_per_sample=counter.total,
        trained=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        not_loaded=getattr(model, NOT_LOADED, None),
    )


def readable(number: float) -> str:
    """Write 137354 as '137.4 k'."""
    if number < 1000:
        return f"{number:.0f} "
    exponent = min(int(math.log10(number) // 3), 5)
    return f"{number / 1000**exponent:.1f} {' kMGTP'[exponent]}"
