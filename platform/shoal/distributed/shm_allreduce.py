"""All-reduce of gradients through shared memory, between processes of one host."""

import mmap
import os
import pickle
import platform
import time
import uuid
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

CHUNK_BYTES = 8 << 20
LINE = 8  # int64 words in a cache line: flags on lines of their own do not slow each other
# Of an operation of all workers, here and in gloo: NCCL's own. gloo's own is half an hour.
COLLECTIVE_TIMEOUT_S = 600.0


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
        lines = np.frombuffer(self._map, dtype=np.int64, count=size * LINE).reshape(size, LINE)
        self._flags, self._notes = lines[:, 0], lines[:, 1:3].T
        slots = torch.frombuffer(self._map, dtype=torch.uint8, offset=flags)
        self._slots = slots.view(2, size, CHUNK_BYTES)
        self._rank, self._size, self._pids, self._round = rank, size, pids, 0
        self._layouts: dict[tuple[torch.dtype, tuple[int, ...]], list[list[Sequence[Tensor]]]] = {}

    @classmethod
    def among_workers(cls) -> "SharedMemory | None":
        """Set it up if all workers are processes of this host that can share memory, else return None."""
        rank, size = dist.get_rank(), dist.get_world_size()
        if size == 1:
            return None
        is_able = hasattr(os, "memfd_create") and platform.machine() == "x86_64"
        file = _nameless_file(size * LINE * 8 + 2 * size * CHUNK_BYTES) if rank == 0 and is_able else None
        shared: list[Any] = [_path_and_target(file) if file else ("", "")]
        dist.broadcast_object_list(shared, src=0)
        path, target = shared[0]
        peers: list[Any] = [None] * size
        dist.all_gather_object(peers, (bool(path) and _target(path) == target, os.getpid(), _pid_namespace()))
        is_shared = all(able for able, _, _ in peers) and len({space for _, _, space in peers}) == 1
        made = cls(path, rank, size, [pid for _, pid, _ in peers]) if is_shared else None
        dist.barrier()
        if file:
            file.close()
        return made

    def all_reduce(self, tensor: Tensor) -> None:
        """Replace a contiguous tensor by its sum over the workers."""
        self.all_reduce_together([tensor.view(-1)])

    def all_reduce_together(self, vectors: Sequence[Tensor], note: bool = False) -> bool:
        """Replace vectors of one type by their sums over the workers, as many in a round as a slot holds.

        Args:
            vectors: of the same lengths on every worker.
            note: something that this worker tells the others.

        Returns:
            whether any worker told it.
        """
        room = left = CHUNK_BYTES // vectors[0].element_size()
        pieces: list[Tensor] = []
        is_noted = False
        for vector in vectors:
            while vector.numel() > left:
                is_noted |= self._add([*pieces, vector[:left]] if left else pieces, note)
                vector, pieces, left = vector[left:], [], room
            pieces.append(vector)
            left -= vector.numel()
        return self._add(pieces, note) or is_noted

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

    def _add(self, pieces: list[Tensor], note: bool) -> bool:
        """Replace vectors that fit into a slot by their sums; return whether any worker's note is set."""
        turn = (self._round + 1) & 1
        mine, first, second, *others = self._layout(pieces)[turn]
        torch.cat(pieces, out=mine[0])
        self._notes[turn, self._rank] = note
        self._round += 1
        self._flags[self._rank] = self._round
        self._wait()
        for piece, one, two in zip(pieces, first, second, strict=True):
            torch.add(one, two, out=piece)
        for rows in others:
            for piece, row in zip(pieces, rows, strict=True):
                piece.add_(row)
        return bool(self._notes[turn].any())

    def _layout(self, pieces: list[Tensor]) -> list[list[Sequence[Tensor]]]:
        """Return where vectors lie in each of the two sets of slots: this worker's slot whole, then all split.

        Making these views takes longer than the sum of a small model's gradients, so those of several are kept.
        """
        sizes = tuple(piece.numel() for piece in pieces)
        layout = self._layouts.get((pieces[0].dtype, sizes))
        if layout is None:
            used = self._slots[:, :, : sum(sizes) * pieces[0].element_size()]
            sets = [list(slots.view(pieces[0].dtype)) for slots in used]
            layout = [[[slots[self._rank]], *(slot.split(sizes) for slot in slots)] for slots in sets]
            if len(sizes) > 1:
                self._layouts[pieces[0].dtype, sizes] = layout
        return layout

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
        if waited_s > COLLECTIVE_TIMEOUT_S:
            raise TimeoutError(f"a worker did not join the gradient sum within {COLLECTIVE_TIMEOUT_S:.0f} s")


def _nameless_file(size: int) -> BinaryIO | None:
    """Return a file in memory that is gone with the last process that has it, however that ends; None: no room."""
    file = os.fdopen(os.memfd_create(f"shoal-{uuid.uuid4().hex}"), "r+b", buffering=0)
    try:
        os.posix_fallocate(
            file.fileno(), 0, size
        )  # now: too little memory is an error here, and a SIGBUS later
    except OSError:
        file.close()
        return None
    return file


def _path_and_target(file: BinaryIO) -> tuple[str, str]:
    """Return how other processes of this host open a file of this process, and what tells it from all others."""
    path = f"/proc/{os.getpid()}/fd/{file.fileno()}"
    return path, _target(path)


def _target(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _pid_namespace() -> str:
    return _target("/proc/self/ns/pid")
