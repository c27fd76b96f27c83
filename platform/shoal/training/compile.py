"""torch.compile of a model in place: names of weights stay, and evaluation runs the same module.

It knows the compiler; it does not know what the model is used for.
"""

import torch
from torch import Tensor, nn

from shoal.distributed.torch_private import keep_graphs_whole
from shoal.errors import ConfigError
from shoal.models.transformer import table_of_angles


def compile_model(model: nn.Module, device: torch.device) -> None:
    """Have the model's forward compiled at its first call, and again for new shapes.

    A second batch size, the epoch's short last one, makes a kernel for any size, which may serve later full batches
    too: a resumed run then equals an uninterrupted one within rounding, not bit for bit.

    Raises:
        ConfigError: there is no working compiler on this machine.
    """
    _check_compiler(device)
    keep_graphs_whole()
    torch.compiler.assume_constant_result(table_of_angles)  # type: ignore[no-untyped-call]
    # Not `model.compile()`, which leaves a model that is one of torch.nn's own classes as it is.
    model.forward = torch.compile(model.forward)


def _check_compiler(device: torch.device) -> None:
    """Compile one operation: nothing less shows whether compiler, headers and Triton are all there."""
    try:
        torch.compile(_probe)(torch.zeros(8, device=device))
    except Exception as error:
        needed = "triton and a C compiler" if device.type == "cuda" else "a C++ compiler (g++)"
        raise ConfigError(
            f"train.compile=true does not work for {device.type} here ({_first_line(error)}): install {needed} and "
            "Python's headers on every node, or set train.compile=false"
        ) from None


def _probe(x: Tensor) -> Tensor:
    return x.sin() + 1.0


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
