"""Measures what a GPU is used for: 350 million parameters in Shoal's loop, bf16, compiled, flash attention.

The shape is that of GPT-2 medium (Radford et al. 2019) with a context of 1024, on random tokens that lie on the device.
MFU is the model FLOPs utilization of Chowdhery et al. 2022 (PaLM), appendix B, by the dense peak in the data sheet.
Needs torch, numpy and pydantic alone, so that a bare GPU machine can run it: `python benchmarks/mfu.py [--json FILE]`.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

import torch

from shoal.data.loader import ResidentShard, Rows
from shoal.data.sampler import Lanes
from shoal.data.tokenizer import SPECIALS
from shoal.devices import reset_peak
from shoal.distributed.process_group import SingleProcess
from shoal.models.gpt import GPT
from shoal.models.size import measure_size
from shoal.tasks.language import CausalLM
from shoal.training.assemble import assemble_loop
from shoal.training.checkpoint.contents import TrainingProgress
from shoal.training.clock import Clock
from shoal.training.device_memory import peak_bytes
from shoal.training.loop import Callbacks, TrainConfig, train
from shoal.training.mixed_precision import Precision
from shoal.training.optimizer import OptimConfig
from shoal.training.throughput import Workload, peak_flops

TARGET = 0.45


@dataclass(frozen=True)
class Setting:
    """What is trained, and how."""

    width: int = 1024
    depth: int = 24
    heads: int = 16
    vocabulary: int = 50304  # GPT-2's, up to a multiple of 64
    context: int = 1024
    batch: int = 16  # sequences a step
    warm: int = 10  # steps that compile, allocate and are not measured
    steps: int = 40  # measured
    precision: Precision = "bf16"
    is_compiled: bool = True


@dataclass(frozen=True)
class Measured:
    """What a training came to."""

    parameters: int
    losses: list[float]  # of each step, in nats per token
    rates: dict[str, float]
    peak_bytes: int


class Vocabulary:
    """So many ids, each standing for one byte; text is not needed."""

    def __init__(self, size: int) -> None:
        self.vocabulary = size
        self.spelling = [b" "] * size


class LossLog:
    """A metric log that keeps the losses in memory, at no cost in time."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def log(self, step: int, metrics: dict[str, float], at_s: float | None = None) -> None:
        self.losses.append(metrics["train/loss"])

    def flush(self) -> None:
        pass


class Stopwatch:
    """Starts after the warm steps, when the device has done them."""

    def __init__(self, warm: int, device: torch.device) -> None:
        self._warm, self._device = warm, device
        self._step, self._since = 0, 0.0

    def __call__(self) -> None:
        self._step += 1
        if self._step == self._warm:
            self._since = self.now()

    def now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    @property
    def seconds(self) -> float:
        return self.now() - self._since


def run(setting: Setting, device: torch.device) -> Measured:
    """Train by Shoal's own loop and return what it came to."""
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    steps = setting.warm + setting.steps
    model = GPT((setting.context,), setting.vocabulary, setting.width, setting.depth, heads=setting.heads).to(
        device
    )
    size = measure_size(model, torch.ones(1, setting.context, dtype=torch.long, device=device))
    rows = setting.batch * steps
    tokens = torch.randint(SPECIALS, setting.vocabulary, (rows, setting.context + 1), dtype=torch.int32)
    task = CausalLM(Vocabulary(setting.vocabulary), setting.context, seed=0)  # type: ignore[arg-type]
    resident = Rows(tokens.to(device), torch.zeros(rows, device=device))
    loss_log, stopwatch = LossLog(), Stopwatch(setting.warm, device)
    loop = assemble_loop(
        model,
        task,
        ResidentShard(Lanes(rows, setting.batch, seed=0), resident, {}),
        OptimConfig(name="adamw", lr=3e-4, weight_decay=0.1, clip_norm=1.0),
        TrainConfig(epochs=1, precision=setting.precision, compile=setting.is_compiled),
        SingleProcess(),
        device,
        has_validation=False,
    )
    reset_peak(device)
    train(loop, Callbacks(loss_log, after_step=stopwatch), TrainingProgress(), Clock())
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    workload = Workload(size.flops_per_sample, setting.context, peak_flops(name, setting.precision))
    rates = workload.rates(setting.steps * setting.batch / stopwatch.seconds)
    return Measured(size.parameters, loss_log.losses, rates, peak_bytes(device))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=3, help="rounds (default 3)")
    parser.add_argument("--json", type=Path, help="also write what was measured here")
    given = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("there is no NVIDIA GPU here: MFU is not measured", file=sys.stderr)
        return 1
    device = torch.device("cuda:0")
    rounds = [run(Setting(), device) for _ in range(given.repeat)]
    mfu = statistics.median(found.rates.get("mfu", 0.0) for found in rounds)
    tokens = statistics.median(found.rates["tokens_per_second"] for found in rounds)
    print(f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, median of {given.repeat} rounds")
    print(f"parameters        {rounds[0].parameters / 1e6:,.0f} million")
    print(f"tokens per second {tokens:,.0f}")
    print(f"peak memory       {rounds[0].peak_bytes / 1e9:.1f} GB")
    print(
        f"MFU               {mfu:.1%} (target: at least {TARGET:.0%}) {'pass' if mfu >= TARGET else 'FAIL'}"
    )
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(
            json.dumps({"setting": asdict(Setting()), "rounds": [asdict(one) for one in rounds]})
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
