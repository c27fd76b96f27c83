"""The sum of gradients over workers that share memory: after backward, whatever part of the model a worker's rows used.

DistributedDataParallel waits inside backward for each parameter: for ever where one worker's rows use a layer and
another's do not. Here every worker adds all its gradients in the model's order once its backward has ended, zeros for
those that it lacks; where one lacks any, they count then who used which. The bits of the sums are the same.

It knows shared memory and modules; it does not know what is trained.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from shoal.distributed.shm_allreduce import SharedMemory
from shoal.distributed.sync_batchnorm import SYNCED
from shoal.distributed.torch_private import writes

# Layers whose buffers are running statistics, which training does not read.
RUNNING = (*SYNCED, *SYNCED.values(), nn.SyncBatchNorm)

SyncBuffers = Callable[[Sequence[Tensor]], None]


def sum_shared(parameters: Sequence[nn.Parameter], shared: SharedMemory, changed: bool = False) -> bool:
    """Replace the gradients of parameters by their sums; those that no worker used keep none.

    Args:
        changed: something that a worker tells the others.

    Returns:
        whether any worker said `changed`.
    """
    unused = [parameter for parameter in parameters if parameter.grad is None]
    for parameter in unused:
        parameter.grad = torch.zeros_like(parameter)
    kinds: dict[torch.dtype, list[Tensor]] = {}
    for parameter in parameters:
        kinds.setdefault(parameter.dtype, []).append(_in_memory_order(parameter))
    is_noted = False
    for gradients in kinds.values():
        is_noted |= shared.all_reduce_together(gradients, note=changed or bool(unused))
    if not is_noted:
        return False
    lacking = {id(parameter) for parameter in unused}
    counts = torch.tensor([float(id(p) not in lacking) for p in parameters] + [float(changed)])
    shared.all_reduce(counts)
    *used, said = counts.tolist()
    drop_unused(parameters, used)
    return bool(said > 0)


def drop_unused(parameters: Sequence[nn.Parameter], workers: Sequence[float]) -> None:
    """Leave no gradient to the parameters that none of the workers used: the optimizer leaves these as they are."""
    for parameter, count in zip(parameters, workers, strict=True):
        if count == 0:
            parameter.grad = None


def _in_memory_order(parameter: nn.Parameter) -> Tensor:
    """Return a parameter's gradient as one dimension that shares its memory.

    Autograd lays a gradient out as its parameter; what a hook has put there may lie otherwise, and is laid out anew.
    """
    gradient = parameter.grad
    assert gradient is not None
    if gradient.is_contiguous() and parameter.is_contiguous():
        return gradient.view(-1)
    if gradient.stride() != parameter.stride():
        gradient = parameter.grad = torch.empty_like(parameter).copy_(gradient)
    return gradient.as_strided((gradient.numel(),), (1,))


class SummedAfterBackward(nn.Module):
    """A model whose gradients `sum_gradients` adds up; outside of `alone` rank 0's buffers are every worker's.

    Buffers are copied from the step on after which one was seen to change, as DistributedDataParallel copies them in
    each forward: tables that a model only reads cost nothing.
    """

    def __init__(self, model: nn.Module, shared: SharedMemory, sync_buffers: SyncBuffers) -> None:
        super().__init__()
        self.model = model
        self._shared, self._sync_buffers, self._is_alone = shared, sync_buffers, False
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._places = [
            (module, name)
            for module in model.modules()
            if type(module) not in RUNNING
            for name, _ in module.named_buffers(recurse=False)
        ]
        self._has_changed = self._are_synced = False

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """Return the model's outputs."""
        if not self._places:
            return self.model(*inputs, **named)
        buffers = [module.get_buffer(name) for module, name in self._places]
        if self._are_synced and not self._is_alone:
            self._sync_buffers(buffers)
        before = [writes(buffer) for buffer in buffers]
        outputs = self.model(*inputs, **named)
        self._has_changed |= any(
            getattr(module, name) is not buffer or writes(buffer) != count
            for (module, name), buffer, count in zip(self._places, buffers, before, strict=True)
        )
        return outputs

    def sum_gradients(self) -> None:
        """All-reduce the gradients that backward has left."""
        self._are_synced |= sum_shared(self._trained, self._shared, self._has_changed)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Have forward passes inside not wait for the other workers."""
        self._is_alone = True
        try:
            yield
        finally:
            self._is_alone = False


class EachParameter(torch.autograd.Function):
    """The identity on a loss, whose backward reaches every parameter with no gradient.

    DistributedDataParallel sees each parameter in each backward then, and counts one that this worker's rows do
    not use as zero instead of waiting for it. The others' gradients, and their order, stay.
    """

    @staticmethod
    def forward(ctx: Any, loss: Tensor, *parameters: Tensor) -> Tensor:
        ctx.parameters = len(parameters)
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        return gradient, *[None] * ctx.parameters
