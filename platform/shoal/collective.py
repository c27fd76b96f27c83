"""How workers act together: sums over workers, and the gradient sum inside DistributedDataParallel.

On one host, CPU workers add gradients through shared memory instead of a loopback socket: the same sums, in
rank order, for a fraction of the 1.5 to 2 ms that a gloo all-reduce costs there whatever its size. It knows
torch.distributed; it does not know Ray.
"""

import mmap
import os
import pickle
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket
from torch.nn.parallel import DistributedDataParallel

CHUNK_BYTES = 8 << 20
LINE = 8  # int64 words in a cache line: flags on lines of their own do not slow each other
TIMEOUT_S = 1800.0  # gloo's own


class Collective(Protocol):
    """The group of workers, seen from one of them."""

    rank: int
    size: int
    data_rank: int  # which of the data's parts this worker sees, and how many there are
    data_size: int
    is_sharded: bool  # whether each holds a part of the model, and every forward is made by all together
    waited_s: float

    def add_up(self, vector: Tensor) -> Tensor:
        """Return the sum of a vector over the data's parts, the same bits on each worker."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """Return every worker's value, by rank."""
        ...

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's value."""
        ...

    def wrap(self, model: nn.Module, rehearse: Callable[[nn.Module], None]) -> nn.Module:
        """Return a module whose backward adds the gradients up over the workers (a sum, not a mean)."""
        ...

    def no_sync(self, forward: nn.Module) -> AbstractContextManager[object]:
        """Return a context in which the backward of a wrapped module adds gradients up on this worker alone."""
        ...

    def add_gradients(self, model: nn.Module) -> None:
        """Add up over the workers the gradients that the backward of a module left which was not wrapped."""
        ...

    def align(self, model: nn.Module) -> None:
        """Give every worker rank 0's buffers (running statistics), which are the ones that are saved."""
        ...

    def after_backward(self) -> None:
        """Account for the time that the gradient sum kept this worker waiting."""
        ...


class Alone:
    """One worker: nothing to add up."""

    rank, size, waited_s = 0, 1, 0.0
    data_rank, data_size, is_sharded = 0, 1, False

    def add_up(self, vector: Tensor) -> Tensor:
        return vector

    def gather(self, value: Any) -> list[Any]:
        return [value]

    def broadcast(self, value: Any) -> Any:
        return value

    def wrap(self, model: nn.Module, rehearse: Callable[[nn.Module], None]) -> nn.Module:
        return model

    def no_sync(self, forward: nn.Module) -> AbstractContextManager[object]:
        return nullcontext()

    def add_gradients(self, model: nn.Module) -> None:
        pass

    def align(self, model: nn.Module) -> None:
        pass

    def after_backward(self) -> None:
        pass


class Group:
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

    def add_up(self, vector: Tensor) -> Tensor:
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

    def wrap(self, model: nn.Module, rehearse: Callable[[nn.Module], None]) -> nn.Module:
        rehearse(model)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        has_unused = any(parameter.grad is None for parameter in trained)
        model.zero_grad()
        if not trained:
            return model
        wrapped = DistributedDataParallel(
            model,
            device_ids=[self._device.index] if self._device.type == "cuda" else None,
            gradient_as_bucket_view=True,
            find_unused_parameters=has_unused,
        )
        wrapped.register_comm_hook(None, self._shared_hook if self._shared else self._network_hook)
        if not self._shared and self.size > 2:
            # DDP regroups its buckets after the first backward, and where a ring adds a number depends on its
            # place in the bucket. Regrouping before step 0, every attempt adds every step in the same order.
            rehearse(wrapped)
            model.zero_grad()
        return wrapped

    def no_sync(self, forward: nn.Module) -> AbstractContextManager[object]:
        return forward.no_sync() if isinstance(forward, DistributedDataParallel) else nullcontext()

    def add_gradients(self, model: nn.Module) -> None:
        since = time.perf_counter()
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        whole = [gradient.contiguous() for gradient in gradients]
        if self._shared:
            for tensor in whole:
                self._shared.all_reduce(tensor)
        else:
            for work in [dist.all_reduce(tensor, async_op=True) for tensor in whole]:
                work.wait()
        for gradient, total in zip(gradients, whole, strict=True):
            if total is not gradient:
                gradient.copy_(total)
        self.waited_s += time.perf_counter() - since

    def align(self, model: nn.Module) -> None:
        with torch.no_grad():
            for buffer in model.buffers():
                # float64 holds every float32 and every whole number that buffers count to.
                mine = buffer.double() if self.rank == 0 else torch.zeros_like(buffer, dtype=torch.float64)
                buffer.copy_(self.add_up(mine.contiguous()))

    def after_backward(self) -> None:
        if self._launched is not None:
            self.waited_s += time.perf_counter() - self._launched
            self._launched = None

    def _shared_hook(self, _: Any, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        assert self._shared is not None
        since = time.perf_counter()
        buffer = bucket.buffer()
        self._shared.all_reduce(buffer)
        self.waited_s += time.perf_counter() - since
        done: torch.futures.Future[Tensor] = torch.futures.Future()
        done.set_result(buffer)
        return done

    def _network_hook(self, _: Any, bucket: GradBucket) -> torch.futures.Future[Tensor]:
        self._launched = time.perf_counter()
        work = dist.all_reduce(bucket.buffer(), async_op=True)
        return work.get_future().then(lambda future: future.value()[0])  # type: ignore[no-any-return]


class SharedMemory:
    """A sum over processes of one host through a shared file in memory.

    Each worker copies its numbers into its own slot and raises its flag to the round's number; when all flags
    are up, each adds all slots in rank order. Two sets of slots take turns: a worker is in round n + 2 only
    after all were seen in round n + 1, so nobody overwrites what another still reads.

    It relies on stores being seen in the order they were made, which x86-64 guarantees and Arm does not.
    """

    def __init__(self, path: str, rank: int, size: int, pids: list[int]) -> None:
        flags = size * LINE * 8
        with open(path, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), flags + 2 * size * CHUNK_BYTES)
        self._flags = np.frombuffer(self._map, dtype=np.int64, count=size * LINE)[::LINE]
        slots = torch.frombuffer(self._map, dtype=torch.uint8, offset=flags)
        self._slots = slots.view(2, size, CHUNK_BYTES)
        self._rank, self._size, self._pids, self._round = rank, size, pids, 0

    @classmethod
    def among_workers(cls) -> "SharedMemory | None":
        """Set it up if all workers are processes of this host that can share memory, else return None."""
        rank, size = dist.get_rank(), dist.get_world_size()
        if size == 1:
            return None
        path, is_able = "", platform.machine() in ("x86_64", "AMD64")
        if rank == 0 and is_able:
            try:
                descriptor, path = tempfile.mkstemp(prefix="shoal-", dir="/dev/shm")
                # Allocated now: a full /dev/shm is an error here, and a SIGBUS later.
                os.posix_fallocate(descriptor, 0, size * LINE * 8 + 2 * size * CHUNK_BYTES)
                os.close(descriptor)
            except OSError:
                is_able = False
        told: list[Any] = [path]
        dist.broadcast_object_list(told, src=0)
        facts: list[Any] = [None] * size
        dist.all_gather_object(facts, (is_able and os.path.exists(told[0]), os.getpid(), _pid_namespace()))
        is_shared = all(able for able, _, _ in facts) and len({space for _, _, space in facts}) == 1
        made = cls(told[0], rank, size, [pid for _, pid, _ in facts]) if is_shared else None
        dist.barrier()
        if rank == 0 and path:
            os.unlink(path)
        return made

    def all_reduce(self, tensor: Tensor) -> None:
        """Replace a contiguous tensor by its sum over the workers."""
        flat = tensor.view(-1)
        step = CHUNK_BYTES // flat.element_size()
        for first in range(0, len(flat), step):
            self._add_chunk(flat[first : first + step])

    def gather(self, value: Any) -> list[Any]:
        """Return every worker's picklable value, by rank: each adds its bytes into a row of zeros."""
        mine = pickle.dumps(value)
        lengths = torch.zeros(self._size, dtype=torch.int64)
        lengths[self._rank] = len(mine)
        self.all_reduce(lengths)
        rows = torch.zeros((self._size, int(lengths.max())), dtype=torch.uint8)
        rows[self._rank, : len(mine)] = torch.frombuffer(bytearray(mine), dtype=torch.uint8)
        self.all_reduce(rows)
        return [
            pickle.loads(row[:length].numpy().tobytes())
            for row, length in zip(rows, lengths.tolist(), strict=True)
        ]

    def _add_chunk(self, chunk: Tensor) -> None:
        self._round += 1
        slots = self._slots[self._round & 1, :, : chunk.nbytes].view(chunk.dtype)
        slots[self._rank].copy_(chunk)
        self._flags[self._rank] = self._round
        self._wait()
        torch.add(slots[0], slots[1], out=chunk)
        for rank in range(2, self._size):
            chunk.add_(slots[rank])

    def _wait(self) -> None:
        """Spin, then yield, then nap until every flag is up; a peer that died is an error."""
        turns, since = 0, 0.0
        while int(self._flags.min()) < self._round:
            turns += 1
            if turns < 20:
                continue
            if turns < 2000:
                os.sched_yield()
                continue
            time.sleep(1e-4)
            since = since or time.monotonic()
            if turns % 1000 == 0:
                self._check_peers(time.monotonic() - since)

    def _check_peers(self, waited_s: float) -> None:
        for rank, pid in enumerate(self._pids):
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                raise ConnectionError(f"worker {rank} (pid {pid}) is gone") from None
        if waited_s > TIMEOUT_S:
            raise TimeoutError(f"a worker did not join the gradient sum within {TIMEOUT_S:.0f} s")


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Run something on a model without a trace in its buffers or the random state."""
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers()}
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        yield
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
