"""How long models take and how large they are; two take turns, so that both meet the same load of the machine."""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from shoal.data.sources.base import Block
from shoal.data.tree import Tree
from shoal.models.activation_memory import forward_bytes
from shoal.storage.records import LatencyRecord

BATCHES = (1, 64)  # rows of a call
# Many short rounds: in few long ones, of two equal models one was 5% slower in a tenth of the measurements.
ROUNDS, CALLS, ROUND_S = 25, 20, 0.08  # calls of a model in a round, fewer where they take longer than that
FEWEST_CALLS = 2
CPUINFO = Path("/proc/cpuinfo")
ISAS = ("avx512_vnni", "avx_vnni")

Call = Callable[[], object]


def latencies(calls: Sequence[Call]) -> list[LatencyRecord]:
    """Return how long each of several calls takes, each in its turn of every round, one thread for all.

    A round's p50 and p99 are of its calls of one kind; what is returned is the median of them over the rounds.
    """
    rounds: list[list[np.ndarray]] = [[] for _ in calls]
    with one_thread():
        counts = [_count(call) for call in calls]
        for number in range(ROUNDS):
            order = range(len(calls)) if number % 2 == 0 else reversed(range(len(calls)))
            for which in order:
                times = [_seconds(calls[which]) for _ in range(counts[which])]
                rounds[which].append(np.percentile(times, [50, 99]) * 1e3)
    medians = [np.median(found, axis=0) for found in rounds]
    return [LatencyRecord(p50_ms=float(p50), p99_ms=float(p99)) for p50, p99 in medians]


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Have torch, and what is loaded meanwhile for ONNX Runtime, use one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def rows_of(block: Block, count: int) -> Block:
    """Return so many rows of a block, again from its start where it has fewer."""
    held = len(next(iter(block.values())))
    places = np.arange(count) % held
    return {name: values[places] for name, values in block.items()}


def parameters_of(model: nn.Module) -> tuple[int, int]:
    """Return how many parameters a model has, and how many of them are zero."""
    parameters = list(model.parameters())
    zeros = sum(int((parameter == 0).sum()) for parameter in parameters)
    return sum(parameter.numel() for parameter in parameters), zeros


def memory_of(model: nn.Module, inputs: Tree) -> int:
    """Return the bytes that torch holds for a call: weights and buffers, and activations at their most."""
    held = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    return held + forward_bytes(model, inputs)


def bytes_of(weights: Path) -> int:
    """Return the bytes of a file of weights, and of what ONNX keeps beside it."""
    beside = weights.with_name(f"{weights.name}.data")
    return weights.stat().st_size + (beside.stat().st_size if beside.is_file() else 0)


def isa() -> str:
    """Return which instructions for products of 8-bit integers this machine's CPU has: one of `ISAS`, or none."""
    text = CPUINFO.read_text() if CPUINFO.is_file() else ""
    line = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return next((name for name in ISAS if name in line.split()), "none")


def _count(call: Call) -> int:
    """Return how often a call is made in a round, after it was made some times unmeasured."""
    seconds = statistics.median(_seconds(call) for _ in range(FEWEST_CALLS))
    return max(FEWEST_CALLS, min(CALLS, int(ROUND_S / seconds)))


def _seconds(call: Call) -> float:
    since = time.perf_counter()
    call()
    return time.perf_counter() - since
