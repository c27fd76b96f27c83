"""Everything Shoal uses of torch that torch does not promise to keep: the only module that may name it.

Each interface is behind one function or class here, with a fallback. `tests/unit/distributed/test_torch_private.py`
fails when a new torch drops or changes one; `tests/contracts/test_private_interfaces.py` keeps every other module away
from names with a leading underscore. The list, with the reason for each and what happens without it:

`torch.utils._python_dispatch.TorchDispatchMode` (`DispatchMode`)
    It sees every operation, so FLOPs and bytes can be counted. Without it, FLOPs are counted by torch's
    FlopCounterMode, which takes 1.3 s longer to import, and the memory estimate is refused with a message.
`TorchDispatchMode._should_skip_dynamo` (`DispatchMode`)
    A mode that answers False does not import the compiler. Without it, the same counts, 1.3 s later.
`torch.ops.aten._scaled_dot_product_flash_attention_for_cpu` (`is_cpu_attention`)
    torch has a FLOP formula for attention but does not apply it to the CPU's kernel. Without it, attention on a CPU
    is not counted.
`torch._subclasses.fake_tensor` (`fake_tensors`, `real_tensors`)
    Tensors with a shape and no numbers. Without them, the memory estimate is refused with a message.
`torch.ops.mkldnn._linear_pointwise` (`has_onednn_linear`, `onednn_linear`)
    oneDNN's float32 product, twice as fast as MKL's on AMD's CPUs. Without it, torch.nn.functional.linear.
`torch._foreach_lerp_` (`lerp_`)
    One call for all averaged weights. Without it, a loop over the tensors: the same bits.
`torch._dynamo.config.optimize_ddp` (`keep_graphs_whole`)
    Graphs that are split at DDP's buckets refuse activation checkpointing. Without it, they are split.
`Optimizer.profile_hook_step`, `step.hooked`, `_optimizer_step_{pre,post}_hooks`, `_global_optimizer_{pre,post}_hooks`
    (`without_wrappers`) A step without the profiler's mark and without importing the compiler (1.2 s). Without them,
    torch's class as it is: the same steps.
`Tensor._version` (`writes`)
    How often a tensor was written to. Without it, none is seen to be.
Logger `torch.distributed.tensor._redistribute` (`silence_redistribution`)
    It logs a hint at every gradient norm under FSDP with tensor parallelism. Without it, the hint is logged.

Three more are formats, not names, each in one function of `shoal.distributed.dtensor_io`: the file names of
torch.distributed.checkpoint (`files_of`), the failures in its CheckpointException (`write`), and the `device_mesh` of a
DTensor (`is_dtensor`). `tests/cluster/test_parallelism.py` fails without them.

Depends on torch alone.
"""

import functools
import inspect
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from shoal.errors import ConfigError

REDISTRIBUTION_LOGGER = "torch.distributed.tensor._redistribute"

logger = logging.getLogger(__name__)


def _missing(name: str, purpose: str) -> ConfigError:
    return ConfigError(
        f"torch {torch.__version__} has no {name}, which Shoal needs for {purpose}: install the version that "
        "constraints.txt names"
    )


try:
    from torch.utils._python_dispatch import TorchDispatchMode

    HAS_DISPATCH_MODE = True
except ImportError:
    HAS_DISPATCH_MODE = False
    if not TYPE_CHECKING:

        class TorchDispatchMode:
            def __init__(self) -> None:
                raise _missing("TorchDispatchMode", "the memory estimate")


class DispatchMode(TorchDispatchMode):
    """Base of a context whose `__torch_dispatch__` sees every operation, without importing torch's compiler.

    Raises:
        ConfigError: this torch has no such base (`HAS_DISPATCH_MODE` is False).
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # True, torch's default, imports the compiler to tell it to skip this class


def is_cpu_attention(operation: Any) -> bool:
    """Whether an operation (an OpOverloadPacket) is the CPU's fused attention."""
    known = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
    return known is not None and operation is known


def fake_tensors() -> AbstractContextManager[Any]:
    """Return a context in which new tensors have a shape and no numbers.

    Raises:
        ConfigError: this torch has none.
    """
    try:
        from torch._subclasses.fake_tensor import FakeTensorMode
    except ImportError:
        raise _missing("FakeTensorMode", "the memory estimate") from None
    return FakeTensorMode()


def real_tensors() -> AbstractContextManager[Any]:
    """Return a context inside `fake_tensors` in which tensors are real again.

    Raises:
        ConfigError: this torch has none.
    """
    try:
        from torch._subclasses.fake_tensor import unset_fake_temporarily
    except ImportError:
        raise _missing("unset_fake_temporarily", "the memory estimate") from None
    return unset_fake_temporarily()


def has_onednn_linear() -> bool:
    """Whether torch has an operation that multiplies by oneDNN whatever torch itself would choose."""
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x weight' + bias by oneDNN, of [n, k], [m, k] and [m] or None; contiguous float32 on a CPU."""
    try:
        multiply = torch.ops.mkldnn._linear_pointwise
    except AttributeError:
        return F.linear(x, weight, bias)
    return multiply(x, weight, bias, "none", [], "")  # type: ignore[no-any-return]


def lerp_(targets: list[Tensor], sources: list[Tensor], weight: float) -> None:
    """Move each target towards its source in place: target + weight (source - target)."""
    fused = getattr(torch, "_foreach_lerp_", None)
    if fused is not None:
        fused(targets, sources, weight)
        return
    for target, source in zip(targets, sources, strict=True):
        target.lerp_(source, weight)


def writes(tensor: Tensor) -> int:
    """Return how often a tensor, or another that shares its memory, was written to in place."""
    return getattr(tensor, "_version", 0)


def keep_graphs_whole() -> None:
    """Have the compiler not split graphs at DDP's buckets: split graphs refuse activation checkpointing."""
    try:
        from torch._dynamo import config

        config.optimize_ddp = False
    except (ImportError, AttributeError):
        logger.warning("torch %s: the compiler splits graphs at DDP's buckets", torch.__version__)


def silence_redistribution() -> None:
    """Drop DTensor's hint that a norm is summed along two dimensions of the mesh one after the other."""
    logging.getLogger(REDISTRIBUTION_LOGGER).setLevel(logging.ERROR)


def without_wrappers(kind: Callable[..., Optimizer]) -> Callable[..., Optimizer]:
    """Return an optimizer's class whose methods skip torch's wrappers as long as there are no hooks to call.

    The wrappers mark a range for the profiler and call into torch._dynamo, whose import takes 1.2 s in each process
    and which has nothing to do: the optimizer is not compiled. Without them a step takes 90 us of a small model
    instead of 125. With a step hook registered, on the instance or globally, `step` is torch's wrapped one.
    """
    methods = {
        name: inspect.unwrap(method)
        for name, method in inspect.getmembers(kind, inspect.isfunction)
        if hasattr(method, "__wrapped__")
    }
    if "step" not in methods or not hasattr(Optimizer, "profile_hook_step"):
        return kind
    try:
        from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks
    except ImportError:
        return kind
    bare = torch.no_grad()(methods["step"])
    hooked = Optimizer.profile_hook_step(bare)

    @functools.wraps(bare)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        has_hooks = (
            getattr(self, "_optimizer_step_pre_hooks", True)
            or getattr(self, "_optimizer_step_post_hooks", True)
            or _global_optimizer_pre_hooks
            or _global_optimizer_post_hooks
        )
        return (hooked if has_hooks else bare)(self, *args, **kwargs)

    step.hooked = True  # type: ignore[attr-defined]  # torch's mark of a step that it need not wrap
    methods["step"] = step
    return type(kind.__name__, (kind,), methods)  # type: ignore[arg-type]
