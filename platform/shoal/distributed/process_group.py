"""How workers act together: all-reduce, gather, broadcast, and the sum of gradients.

On one host, CPU workers add gradients through shared memory after backward (`shoal.distributed.gradient_sum`) instead
of a loopback socket: the same sums, in rank order, for a fraction of the 1.5 to 2 ms that a gloo all-reduce costs there
whatever its size. Elsewhere DistributedDataParallel adds them while backward goes on. It knows torch.distributed; it
does not know Ray.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from shoal.devices import fork_rng, wide
from shoal.distributed.gradient_sum import EachParameter, SummedAfterBackward, drop_unused, sum_shared
from shoal.distributed.shm_allreduce import SharedMemory

BROADCAST_BYTES = 64 * 2**20  # at a time, which on a GPU take memory of the device


class Collective(Protocol):
    """The group of workers, seen from one of them."""

    rank: int
    size: int
    data_rank: int  # which of the data's parts this worker sees, and how many there are
    data_size: int
    is_sharded: bool  # whether each holds a part of the model, and every forward is made by all together
    waited_s: float

    def all_reduce(self, vector: Tensor) -> Tensor:
        """Return the sum of a vector over the data's parts, the same bits on each worker."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """Return every worker's value, by rank."""
        ...

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value."""
        ...

    def broadcast_bytes(self, data: bytes) -> bytes:
        """Return rank 0's bytes, which may be many; what the others pass is not looked at."""
        ...

    def wrap(self, model: nn.Module, warmup: Callable[[nn.Module], None]) -> nn.Module:
        """Return a module whose gradients are summed over the workers by the end of `after_backward` (not averaged).

        Its loss goes through `before_backward`. A parameter that some workers' rows do not use counts as zero there,
        whatever step it happens in.

        Args:
            warmup: one forward and backward, which leaves gradients and no other trace.
        """
        ...

    def no_sync(self, forward: nn.Module) -> AbstractContextManager[object]:
        """Return a context in which the backward of a wrapped module accumulates gradients on this worker alone."""
        ...

    def all_reduce_gradients(self, model: nn.Module) -> None:
        """Sum over the workers the gradients that the backward of an unwrapped module left."""
        ...

    def sync_buffers(self, model: nn.Module) -> None:
        """Copy rank 0's buffers (running statistics), which are the ones that are saved, to every worker."""
        ...

    def before_backward(self, forward: nn.Module, loss: Tensor) -> Tensor:
        """Return the loss of a wrapped module's outputs, for backward."""
        ...

    def after_backward(self, forward: nn.Module) -> None:
        """Sum the gradients of a wrapped module, and account for the time that it kept this worker waiting."""
        ...


class SingleProcess:
    """One worker: nothing to reduce."""

    rank, size, waited_s = 0, 1, 0.0
    data_rank, data_size, is_sharded = 0, 1, False

    def all_reduce(self, vector: Tensor) -> Tensor:
        return vector

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def broadcast(self, value: Any) -> Any:
        return value

    def broadcast_bytes(self, data: bytes) -> bytes:
        return data

    def wrap(self, model: nn.Module, warmup: Callable[[nn.Module], None]) -> nn.Module:
        return model

    def no_sync(self, forward: nn.Module) -> AbstractContextManager[object]:
        return nullcontext()

    def all_reduce_gradients(self, model: nn.Module) -> None:
        pass

    def sync_buffers(self, model: nn.Module) -> None:
        pass

    def before_backward(self, forward: nn.Module, loss: Tensor) -> Tensor:
        return loss

    def after_backward(self, forward: nn.Module) -> None:
        pass


class ProcessGroup:
    """The default torch.distributed process group, each of whose workers holds the whole model."""

    is_sharded = False

    def __init__(self, device: torch.device, shared_memory: bool = True) -> None:
        self.rank, self.size, self.waited_s = dist.get_rank(), dist.get_world_size(), 0.0
        self.data_rank, self.data_size = self.rank, self.size
        self._device = device
        self._shared = SharedMemory.among_workers() if shared_memory and device.type == "cpu" else None
        self._launched: float | None = None

    @property
    def transport(self) -> str:
        return "shared memory" if self._shared else str(dist.get_backend())

    def all_reduce(self, vector: Tensor) -> Tensor:
        if vector.device.type != self._device.type:  # on the host, since the device has no float64
            return torch.stack(self.gather(vector)).sum(dim=0)
        total = vector.clone()
        if self._shared:
            self._shared.all_reduce(total)
        else:
            dist.all_reduce(total)
        return total

    def gather(self, value: Any) -> list[Any]:
        if self._shared:
            return self._shared.gather(value)
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: Any) -> Any:
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def broadcast_bytes(self, data: bytes) -> bytes:
        length, parts = self.broadcast(len(data)), []
        for start in range(0, length, BROADCAST_BYTES):
            if self.rank == 0:
                part = torch.frombuffer(bytearray(data[start : start + BROADCAST_BYTES]), dtype=torch.uint8)
            else:
                part = torch.empty(min(BROADCAST_BYTES, length - start), dtype=torch.uint8)
            part = part.to(self._device)
            dist.broadcast(part, src=0)
            if self.rank != 0:
                parts.append(part.cpu().numpy().tobytes())
        return data if self.rank == 0 else b"".join(parts)

    def wrap(self, model: nn.Module, warmup: Callable[[nn.Module], None]) -> nn.Module:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not trained or self.size == 1:
            return model
        if self._shared:
            return SummedAfterBackward(model, self._shared, self._copy_from_first)
        warmup(model)
        has_unused = any(self.gather(any(parameter.grad is None for parameter in trained)))
        model.zero_grad()
        wrapped = DistributedDataParallel(
            model,
            device_ids=[self._device.index] if self._device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            find_unused_parameters=has_unused,
        )
        wrapped.register_comm_hook(None, self._network_hook)
        if self.size > 2:
            # DDP regroups its buckets after the first backward, and where a ring adds a number depends on its
            # place in the bucket. Regrouping before step 0, every attempt adds every step in the same order.
            warmup(wrapped)
            model.zero_grad()
        return wrapped

    def no_sync(self, forward: nn.Module) -> AbstractContextManager[object]:
        if isinstance(forward, SummedAfterBackward):
            return forward.alone()
        return forward.no_sync() if isinstance(forward, DistributedDataParallel) else nullcontext()

    def all_reduce_gradients(self, model: nn.Module) -> None:
        since = time.perf_counter()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if self._shared:
            sum_shared(trained, self._shared)
        else:
            self._sum_over_network(trained)
        self.waited_s += time.perf_counter() - since

    def _sum_over_network(self, parameters: list[nn.Parameter]) -> None:
        used = torch.tensor([float(p.grad is not None) for p in parameters], device=self._device)
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        whole = [gradient.contiguous() for gradient in gradients]
        for work in [dist.all_reduce(tensor, async_op=True) for tensor in (*whole, used)]:
            work.wait()
        for parameter, gradient, total in zip(parameters, gradients, whole, strict=True):
            if total is not gradient:
                gradient.copy_(total)
            parameter.grad = gradient
        drop_unused(parameters, used.tolist())

    def sync_buffers(self, model: nn.Module) -> None:
        self._copy_from_first(list(model.buffers()))

    def _copy_from_first(self, buffers: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for buffer in buffers:
                # float64 holds every float32 and every whole number that buffers count to.
                mine = wide(buffer)
                mine = mine if self.rank == 0 else torch.zeros_like(mine)
                buffer.copy_(self.all_reduce(mine.contiguous()))

    def before_backward(self, forward: nn.Module, loss: Tensor) -> Tensor:
        # Where some parameter is unused from the start, DDP itself looks for such in each step.
        if not isinstance(forward, DistributedDataParallel) or forward.find_unused_parameters:
            return loss
        trained = (parameter for parameter in forward.module.parameters() if parameter.requires_grad)
        reaching: Tensor = EachParameter.apply(loss, *trained)
        return reaching

    def after_backward(self, forward: nn.Module) -> None:
        if isinstance(forward, SummedAfterBackward):
            self._launched = time.perf_counter()
            forward.sum_gradients()
        if self._launched is not None:
            self.waited_s += time.perf_counter() - self._launched
            self._launched = None

    def _network_hook(self, _: Any, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
        self._launched = time.perf_counter()
        work = dist.all_reduce(bucket.buffer(), async_op=True)
        return work.get_future().then(lambda future: future.value()[0])  # type: ignore[no-any-return]


@contextmanager
def preserve_state(model: nn.Module) -> Iterator[None]:
    """Restore the model's buffers and the random state on exit."""
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    with fork_rng(of_all=False):
        yield
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
