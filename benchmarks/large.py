"""Measures what a model of 50 million parameters asks of a worker: bytes under FSDP, seconds that a checkpoint blocks.

A `gpt` of width 512 and depth 16, AdamW. Bytes: two processes over gloo share it as `scale.strategy` says and make a
step; after it, each counts its parameters, their gradients and the optimizer's state as it holds them, the largest
unit that FSDP makes whole in between added. Checkpoint: this process takes and writes one as the loop does, in the
background, and as a loop would without that, waiting for the disk; the measure is how long the caller is kept, by
any but the first checkpoint.
"""

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from harness import Figure, Report, Row, free_ports, main, progress, ratios, scratch
from quiet import Quiet, Timing
from shoal.distributed.parallelism import make_group
from shoal.distributed.process_group import SingleProcess
from shoal.models.gpt import GPT
from shoal.runs.config import ScaleConfig
from shoal.storage.run_folder import RunFolder
from shoal.training.checkpoint.background import BackgroundSaver
from shoal.training.checkpoint.contents import TrainingProgress, random_state, snapshot
from shoal.training.checkpoint.store import CheckpointStore
from shoal.training.optimizer import OptimConfig, build_optimizer

WORKERS, CONTEXT, VOCABULARY = 2, 32, 259
CPU = torch.device("cpu")


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return GPT((CONTEXT,), VOCABULARY, width=512, depth=16, heads=8)


def step(model: nn.Module, forward: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Make one step on one row; return the bytes of parameters, gradients and optimizer state held here."""
    row = torch.arange(CONTEXT)[None] % VOCABULARY
    forward(row).float().logsumexp(-1).sum().backward()
    gradients = sum(map(nbytes, (parameter.grad for parameter in model.parameters())))
    optimizer.step()
    states = [value for state in optimizer.state.values() for value in state.values()]
    return gradients + sum(map(nbytes, [*model.parameters(), *states]))


def nbytes(tensor: Any) -> int:
    if not isinstance(tensor, Tensor):
        return 0
    here: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return here.numel() * here.element_size()


def largest_unit(model: nn.Module) -> int:
    """Return the bytes of the largest part that is made whole at a time."""
    return max(sum(map(nbytes, block.parameters())) for block in model.blocks)  # type: ignore[union-attr]


def count_here(rank: int, strategy: str, store: str, out: str) -> None:
    """Share the model with the other process, and leave how much of it is here."""
    dist.init_process_group(
        "gloo", init_method=store, rank=rank, world_size=WORKERS, timeout=timedelta(seconds=120)
    )
    torch.set_num_threads(1)
    model = make_model()
    unit = largest_unit(model) if strategy == "fsdp" else 0
    group = make_group(CPU, ScaleConfig(num_workers=WORKERS, strategy=strategy))
    forward = group.wrap(model, lambda module: None)
    held = step(model, forward, build_optimizer(model, OptimConfig(name="adamw"))) + unit
    Path(f"{out}-{rank}").write_text(str(held))
    dist.destroy_process_group()


def held_bytes(strategy: str) -> float:
    """Return the bytes of the worker that holds more."""
    with scratch() as folder:
        store = f"tcp://127.0.0.1:{free_ports(1)[0]}"
        spawn(count_here, (strategy, store, f"{folder}/held"), nprocs=WORKERS)
        return max(float(file.read_text()) for file in folder.glob("held-*"))


class Saving:
    """Saves the model after a step, as the loop does or waiting for the disk."""

    def __init__(self, folder: Path) -> None:
        self.model = make_model()
        self.optimizer = build_optimizer(self.model, OptimConfig(name="adamw"))
        step(self.model, self.model, self.optimizer)
        self._saver = BackgroundSaver(CheckpointStore(RunFolder(str(folder)), keep=1), {}, b"{}")
        self._step = 0

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    def seconds(self, waits: bool) -> Timing:
        """Return how long a caller is kept by one checkpoint."""
        self._step += 1
        saver, states = self._saver, SingleProcess().gather(random_state())
        since_s, since = time.time(), time.perf_counter()
        spare = saver.take_spare()
        saver.save(
            snapshot(self.model, self.optimizer, TrainingProgress(step=self._step), states, spare=spare)
        )
        if waits:
            saver.wait()
        kept = time.perf_counter() - since
        saver.wait()
        return Timing(kept, since_s, time.time())


def measure(repeat: int) -> Report:
    quiet = Quiet()
    ddp, fsdp = held_bytes("ddp"), held_bytes("fsdp")
    blocked, waited = [], []
    with scratch() as folder:
        saving = Saving(folder)
        saving.seconds(waits=True)  # the first finds no memory to use again
        for number in range(repeat):
            blocked.append(quiet.value(lambda: saving.seconds(waits=False)))
            waited.append(quiet.value(lambda: saving.seconds(waits=True)))
            progress(f"round {number + 1}/{repeat}: {blocked[-1]:.3g} s of {waited[-1]:.3g} s")
    share = [100 * one for one in ratios(blocked, waited)]
    rows = [
        Row("parameters, gradients, optimizer state: ddp", [ddp / 1e6], "MB"),
        Row("parameters, gradients, optimizer state: fsdp", [fsdp / 1e6], "MB"),
        Row("a checkpoint that is waited for", waited, "s"),
        Row("a checkpoint in the background keeps the loop", blocked, "s"),
        Row("share", share, "%"),
    ]
    figures = [
        Figure("bytes of a worker, fsdp / ddp, 2 workers", fsdp / ddp, 0.55, is_at_least=False),
        Figure("time a checkpoint blocks, of one that is waited for", rows[-1].median, 10.0, False, unit="%"),
    ]
    return Report(f"A gpt of {saving.parameters / 1e6:.0f} million parameters", rows, figures, [quiet.note])


if __name__ == "__main__":
    main(measure)
