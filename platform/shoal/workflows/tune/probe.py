"""What training by some configs takes: a few steps of each, in processes of their own, in folders that go again."""

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from shoal.cluster import session
from shoal.cluster.trial_actor import write_metadata
from shoal.config.schema import build_config
from shoal.data.partition import WorkerRows, partition_source
from shoal.distributed.process_group import SingleProcess
from shoal.errors import DivergedError, TrainingError
from shoal.runs.config import RunConfig
from shoal.runs.machine import local_gpus
from shoal.runs.validate import validate
from shoal.runs.worker import OUTCOME, WorkerSpec, log_every, resident_shard, run_worker
from shoal.storage.run_folder import CHECKPOINTS, JOURNAL, RunFolder
from shoal.tasks.open_data import preprocessing_spec
from shoal.training.loop import total_steps

PROBED_S = 4.0
WARM_STEPS, PROBED_STEPS = 20, 300


@dataclass(frozen=True)
class Probe:
    """What a trial costs, by some of its steps."""

    warm_s: float | None  # by how much longer the first trial in a process takes; of others None
    fixed_s: float
    step_s: float
    steps: int  # of the whole trial
    journal_bytes: float  # a step
    fixed_bytes: int
    checkpoint_bytes: int
    weights_bytes: int


def probe(configs: Sequence[RunConfig], slots: int, num_workers: int) -> list[Probe]:
    """Try configs in as many processes as trials would run side by side, in each one after another, for some seconds.

    Raises:
        TrainingError: they cannot be trained.
    """
    described = [config.model_dump(mode="json") for config in configs]
    shard_refs = [described[slot::slots] or described[:1] for slot in range(slots)]
    with ThreadPoolExecutor(slots) as pool:
        found = [one for some in pool.map(_apart, shard_refs, [num_workers] * slots) for one in some]
    if not found:
        raise TrainingError(
            "every trial that was tried diverged within some steps: lower the range of optim.lr"
        )
    return found


def _apart(described: list[dict[str, Any]], num_workers: int) -> list[Probe]:
    done = subprocess.run(
        [sys.executable, "-m", "shoal.workflows.tune.probe"],
        input=json.dumps([described, num_workers]),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise TrainingError(f"a trial failed when it was tried: {done.stderr.strip().splitlines()[-1]}")
    return [Probe(**found) for found in json.loads(done.stdout.splitlines()[-1])]


def _try_all(configs: Sequence[RunConfig]) -> list[Probe]:
    """Train by one config after another; those that diverge are left out, as they end a sweep's trial early."""
    since, found = time.monotonic(), list[Probe]()
    device = torch.device("cuda:0" if configs[0].scale.use_gpu and local_gpus() else "cpu")
    plan = validate(configs[0], session.connect)
    for config in configs:
        if found and time.monotonic() - since > PROBED_S:
            break
        if (config.data, config.task) != (plan.config.data, plan.config.task):
            plan = validate(config, session.connect)
        assert plan.dataset_info is not None
        preprocessing = preprocessing_spec(config.data, config.task, config.seed, plan.source)
        hand = partition_source(plan.source, preprocessing, plan.dataset_info, 1)[0]
        steps = total_steps(config.train, plan.dataset_info.lanes(preprocessing).steps)
        paced = config.replace({"track.every_steps": log_every(config, steps)})
        told = WorkerSpec(paced, "", 1, plan.dataset_info, preprocessing)
        with contextlib.suppress(DivergedError):
            first = None if found else _try(told, min(steps, WARM_STEPS), hand, device)
            found.append(_probe_of(first, _try(told, min(steps, PROBED_STEPS), hand, device), steps))
    return found


def _probe_of(first: "_Tried | None", later: "_Tried", steps: int) -> Probe:
    fixed_s, step_s = later.seconds - later.training_s, later.training_s / later.steps
    return Probe(
        warm_s=max(0.0, first.seconds - fixed_s - first.steps * step_s) if first else None,
        fixed_s=fixed_s,
        step_s=step_s,
        steps=steps,
        journal_bytes=later.journal_bytes / later.steps,
        fixed_bytes=later.other_bytes,
        checkpoint_bytes=later.checkpoint_bytes,
        weights_bytes=later.weights_bytes,
    )


@dataclass(frozen=True)
class _Tried:
    """What a short trial took."""

    steps: int
    seconds: float
    training_s: float
    journal_bytes: int
    checkpoint_bytes: int
    weights_bytes: int
    other_bytes: int


def _try(told: WorkerSpec, steps: int, hand: WorkerRows, device: torch.device) -> _Tried:
    """Do in this process what a trial's actor does."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, path = RunFolder(scratch), Path(scratch)
        folder.create_identity(name="probe")
        told = replace(told, config=told.config.replace({"train.max_steps": steps}), folder=folder.uri)
        since = time.perf_counter()
        told = replace(told, flops_per_sample=write_metadata(told, folder))
        run_worker(
            told, resident_shard(told, hand, 0, 1, device), SingleProcess(), device, watches_system=False
        )
        seconds = time.perf_counter() - since
        outcome = folder.read_json(OUTCOME)
        journal, checkpoints = _bytes(path / JOURNAL), list((path / CHECKPOINTS).glob("step-*"))
        return _Tried(
            steps=outcome["progress"]["step"],
            seconds=seconds,
            training_s=outcome["attempt_seconds"],
            journal_bytes=journal,
            checkpoint_bytes=max(map(_bytes, checkpoints)),
            weights_bytes=max((file.stat().st_size for file in path.rglob("*.safetensors")), default=0),
            other_bytes=_bytes(path) - journal - sum(map(_bytes, checkpoints)),
        )


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    """Try the configs on standard input, and print what they cost."""
    described, num_workers = json.load(sys.stdin)
    configs = [build_config(RunConfig, one) for one in described]
    share = {"data.global_batch_size": max(1, configs[0].data.global_batch_size // num_workers)}
    alone = {"scale.num_workers": 0, "scale.strategy": "ddp", "scale.tp_size": None}
    torch.set_num_threads(max(1, int(configs[0].scale.cpus_per_worker)))
    print(json.dumps([vars(one) for one in _try_all([config.replace(alone | share) for config in configs])]))


if __name__ == "__main__":
    main()
