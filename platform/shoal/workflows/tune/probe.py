"""Measures what training by some configs takes: a few steps of each, in separate processes and temporary folders."""

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
from shoal.processes import open_answers, start_answering
from shoal.runs.config import RunConfig
from shoal.runs.machine import local_device
from shoal.runs.resident import resident_shard
from shoal.runs.validate import validate
from shoal.runs.worker import WorkerSpec, log_every, run_worker
from shoal.storage.records import Outcome
from shoal.storage.run_folder import CHECKPOINTS, JOURNAL, RunFolder
from shoal.tasks.open_data import preprocessing_spec
from shoal.training.checkpoint.store import CheckpointStore
from shoal.training.loop import total_steps

PROBE_S = 4.0  # per process
WARMUP_STEPS, PROBE_STEPS = 20, 300


@dataclass(frozen=True)
class Probe:
    """What a trial costs, by some of its steps.

    Attributes:
        warm_s: by how much longer the first trial in a process takes; None for the others.
        fixed_s, step_s: seconds per trial, and per step.
        steps: of the whole trial.
        journal_bytes: per step.
        fixed_bytes: per trial, without journal and checkpoints.
    """

    warm_s: float | None
    fixed_s: float
    step_s: float
    steps: int
    journal_bytes: float
    fixed_bytes: int
    checkpoint_bytes: int
    weights_bytes: int


@dataclass(frozen=True)
class _ShortTrial:
    """What a few steps of a trial took."""

    steps: int
    seconds: float
    training_s: float
    journal_bytes: int
    checkpoint_bytes: int
    weights_bytes: int
    other_bytes: int


def probe(configs: Sequence[RunConfig], slots: int, num_workers: int) -> list[Probe]:
    """Train some steps of configs, in as many processes as trials would run side by side, for some seconds.

    Raises:
        TrainingError: they cannot be trained.
    """
    trees = [config.model_dump(mode="json") for config in configs]
    shares = [trees[slot::slots] or trees[:1] for slot in range(slots)]
    with ThreadPoolExecutor(slots) as pool:
        probes = [
            probe for some in pool.map(_in_new_process, shares, [num_workers] * slots) for probe in some
        ]
    if not probes:
        raise TrainingError(
            "every trial that was tried diverged within some steps: lower the range of optim.lr"
        )
    return probes


def _in_new_process(trees: list[dict[str, Any]], num_workers: int) -> list[Probe]:
    process, answers = start_answering(["-m", "shoal.workflows.tune.probe"], stderr=subprocess.PIPE)
    with process, answers:
        _, err = process.communicate(json.dumps([trees, num_workers]))
        if process.returncode:
            reason = (err.strip().splitlines() or ["no output"])[-1]
            raise TrainingError(f"a trial failed when it was tried: {reason}")
        return [Probe(**fields) for fields in json.loads(answers.readline())]


def _probe_all(configs: Sequence[RunConfig]) -> list[Probe]:
    """Probe one config after another; those that diverge are left out, since a sweep ends their trials early."""
    since, probes = time.monotonic(), list[Probe]()
    device = local_device(configs[0].scale)
    plan = validate(configs[0], session.connect)
    for config in configs:
        if probes and time.monotonic() - since > PROBE_S:
            break
        if (config.data, config.task) != (plan.config.data, plan.config.task):
            plan = validate(config, session.connect)
        assert plan.dataset_info is not None
        preprocessing = preprocessing_spec(config.data, config.task, config.seed, plan.source)
        rows = partition_source(plan.source, preprocessing, plan.dataset_info, 1)[0]
        steps = total_steps(config.train, plan.dataset_info.lanes(preprocessing).steps)
        paced = config.replace({"track.every_steps": log_every(config, steps)})
        spec = WorkerSpec(paced, "", 1, plan.dataset_info, preprocessing)
        with contextlib.suppress(DivergedError):
            first = None if probes else _train(spec, min(steps, WARMUP_STEPS), rows, device)
            probes.append(_probe_of(first, _train(spec, min(steps, PROBE_STEPS), rows, device), steps))
    return probes


def _probe_of(first: _ShortTrial | None, later: _ShortTrial, steps: int) -> Probe:
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


def _train(spec: WorkerSpec, steps: int, rows: WorkerRows, device: torch.device) -> _ShortTrial:
    """Do in this process what a trial's actor does."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, path = RunFolder(scratch), Path(scratch)
        folder.create_identity(name="probe", experiment="probe")
        spec = replace(spec, config=spec.config.replace({"train.max_steps": steps}), folder=folder.uri)
        since = time.perf_counter()
        spec = replace(spec, flops_per_sample=write_metadata(spec, folder))
        shard = resident_shard(spec, rows, 0, 1, device)
        run_worker(spec, shard, SingleProcess(), device, watches_system=False)
        seconds = time.perf_counter() - since
        outcome = folder.load(Outcome)
        assert outcome is not None, "rank 0 writes it when training has ended"
        journal = _bytes(path / JOURNAL)
        checkpoints = [path / CHECKPOINTS / name for name in CheckpointStore(folder).names()]
        return _ShortTrial(
            steps=outcome.progress.step,
            seconds=seconds,
            training_s=outcome.attempt_seconds,
            journal_bytes=journal,
            checkpoint_bytes=max(map(_bytes, checkpoints)),
            weights_bytes=max((file.stat().st_size for file in path.rglob("*.safetensors")), default=0),
            other_bytes=_bytes(path) - journal - sum(map(_bytes, checkpoints)),
        )


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main(pipe: str) -> None:
    """Probe the configs on standard input, and write what they cost into a pipe."""
    answers = open_answers(pipe)
    trees, num_workers = json.load(sys.stdin)
    configs = [build_config(RunConfig, tree) for tree in trees]
    share = {"data.global_batch_size": max(1, configs[0].data.global_batch_size // num_workers)}
    single = {"scale.num_workers": 0, "scale.strategy": "ddp", "scale.tp_size": None}
    torch.set_num_threads(max(1, int(configs[0].scale.cpus_per_worker)))
    probes = _probe_all([config.replace(single | share) for config in configs])
    answers.write(json.dumps([vars(probe) for probe in probes]) + "\n")
    answers.close()


if __name__ == "__main__":
    main(sys.argv[1])
