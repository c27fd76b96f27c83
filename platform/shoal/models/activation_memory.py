"""Bytes of activations that a forward pass keeps for backward, found on fake tensors.

Depends on torch and the names of a model's blocks; independent of configs, data and devices.
"""

import contextlib
import functools
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from shoal.data.tree import Tree
from shoal.distributed.blocks import blocks_of
from shoal.distributed.torch_private import DispatchMode
from shoal.models.call import call_model

FEWEST_BLOCKS = 2  # that are run of a model with equal blocks


def estimate_activations(model: nn.Module, inputs: Tree, precision: str) -> list[int]:
    """Return `activation_bytes`; for a model with blocks, also those with activation checkpointing, as a second item.

    Of equal blocks only a few are run, as each further one adds the same. The others are removed from the model.
    """
    blocks = blocks_of(model)
    if not blocks:
        return [activation_bytes(model, inputs, precision)]
    depth = len(blocks)
    if depth <= FEWEST_BLOCKS + 1 or not _are_alike(blocks):
        return _both(model, inputs, precision)
    del blocks[FEWEST_BLOCKS + 1 :]
    more = _both(model, inputs, precision)
    del blocks[FEWEST_BLOCKS:]
    few = _both(model, inputs, precision)
    return [low + (depth - FEWEST_BLOCKS) * (high - low) for low, high in zip(few, more, strict=True)]


def activation_bytes(model: nn.Module, inputs: Tree, precision: str) -> int:
    """Return the largest number of bytes that a forward and backward pass holds besides weights and their gradients.

    Attention and dropout are counted as a GPU's kernels keep them. Autocast's copies of weights are included, the
    workspaces inside kernels are not.

    Args:
        model: afterwards in training mode, without gradients; the values of its parameters do not matter.
        inputs: tensors [n, ...].
        precision: fp32, or any other for autocast to bfloat16.
    """
    ledger = SavedTensorLedger(model)
    half = torch.autocast("cpu", torch.bfloat16) if precision != "fp32" else contextlib.nullcontext()
    with ledger:
        with half:
            outputs = _fused(call_model, model.train(), inputs)
        _loss(outputs).backward()  # type: ignore[no-untyped-call]
    ledger.close()
    return ledger.peak


def evaluation_bytes(model: nn.Module, inputs: Tree, precision: str) -> int:
    """Return the largest number of bytes that a forward pass without gradients holds besides weights.

    Args:
        model: afterwards in evaluation mode; of equal blocks few will do, as one runs after the other.
        inputs: tensors [n, ...].
        precision: fp32, or any other for autocast to bfloat16.
    """
    ledger = SavedTensorLedger(model)
    half = torch.autocast("cpu", torch.bfloat16) if precision != "fp32" else contextlib.nullcontext()
    with ledger, torch.no_grad():
        with half:
            outputs = _fused(call_model, model.eval(), inputs)
        _loss(outputs)
    ledger.close()
    return ledger.peak


def forward_bytes(model: nn.Module, inputs: Tree) -> int:
    """Return the largest number of bytes that a forward pass for predictions holds besides weights and inputs.

    Args:
        model: in evaluation mode.
        inputs: tensors [n, ...].
    """
    ledger = SavedTensorLedger(model)
    with ledger, torch.no_grad():
        call_model(model, inputs)
    ledger.close()
    return ledger.peak


class SavedTensorLedger(DispatchMode):
    """Counts the bytes of every tensor that operations return inside this context, for as long as it is referenced.

    Attributes:
        peak: the largest number of bytes at a time, without weights and without gradients that are complete.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.peak = 0
        self._now = 0
        self._model = model
        self._bytes: dict[int, int] = {}
        for tensor in [*model.parameters(), *model.buffers()]:
            self._enter(tensor, 0)
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(self._leave)
            for parameter in model.parameters()
            if parameter.requires_grad
        ]

    def close(self) -> None:
        """Remove the hooks and the gradients from the model."""
        for hook in self._hooks:
            hook.remove()
        self._model.zero_grad()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self._enter(tensor)
        return out

    def _enter(self, tensor: Tensor, size: int | None = None) -> None:
        storage = tensor.untyped_storage()
        if id(storage) in self._bytes:
            return
        self._bytes[id(storage)] = storage.nbytes() if size is None else size
        weakref.finalize(storage, self._forget, id(storage))
        self._now += self._bytes[id(storage)]
        self.peak = max(self.peak, self._now)

    def _forget(self, key: int) -> None:
        self._now -= self._bytes.pop(key, 0)

    def _leave(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        key = id(parameter.grad.untyped_storage())
        self._now -= self._bytes.get(key, 0)
        self._bytes[key] = 0


class _FusedKernels(TorchFunctionMode):
    """Makes a CPU keep what a GPU does: no attention weights even with dropout, one byte per element of a dropout."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        arguments = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            arguments["dropout_p"] = 0.0
        if func is F.dropout and args and arguments.get("training", True) and arguments.get("p", 0.5) > 0:
            return torch.native_dropout(args[0], arguments.get("p", 0.5), True)[0]
        return func(*args, **arguments)


def fake_like(tensor: Tensor) -> Tensor:
    """Return a tensor of the same shape and type without its values; a parameter stays one."""
    fake = torch.empty(tensor.shape, dtype=tensor.dtype)
    return nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake


def _fused(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with _FusedKernels():
        return forward(*args, **kwargs)


def _loss(outputs: Tensor) -> Tensor:
    """Return a loss that keeps as much as that of `shoal.tasks.language`; with one target per row it is negligible."""
    logits = outputs.flatten(0, -2).float()
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64), reduction="sum")


def _both(model: nn.Module, inputs: Tree, precision: str) -> list[int]:
    plain = activation_bytes(model, inputs, precision)
    with _recomputing(model):
        return [plain, activation_bytes(model, inputs, precision)]


@contextlib.contextmanager
def _recomputing(model: nn.Module) -> Iterator[None]:
    """Have blocks keep their inputs alone (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost")."""
    blocks = list(blocks_of(model) or ())
    for block in blocks:
        block.forward = functools.partial(
            checkpoint,
            functools.partial(_fused, block.forward),
            use_reentrant=False,
            preserve_rng_state=False,
        )
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def _are_alike(blocks: nn.ModuleList | nn.Sequential) -> bool:
    kinds = {
        (type(block), tuple(tuple(parameter.shape) for parameter in block.parameters())) for block in blocks
    }
    return len(kinds) == 1
