"""One worker's part of a run, from the config and its shard to trained weights. Imports no ray.

`scale.num_workers=0` calls `run_worker` in the driver's own process; with workers, Ray Train calls it in each.
"""

import os
import random
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.amp.grad_scaler import GradScaler

from shoal.data.dataset_info import DatasetInfo, PreprocessingSpec
from shoal.data.loader import ResidentShard, Rows, Shard, ViewedShard
from shoal.data.partition import WorkerRows
from shoal.data.sampler import TEST, TRAIN, VALIDATION
from shoal.distributed.dtensor_io import gather_full_tensors
from shoal.distributed.process_group import Collective, preserve_state
from shoal.models.cpu_kernels import use_onednn
from shoal.models.registry import build_model_for
from shoal.runs.config import RunConfig
from shoal.storage.run_folder import STOP, RunFolder
from shoal.tasks.base import Task
from shoal.tasks.classification import Classification
from shoal.tasks.registry import make_task
from shoal.tracking.journal import Journal, NoJournal
from shoal.tracking.system_metrics import SystemMonitor
from shoal.training.accumulation import make_accumulation, split_batch
from shoal.training.activation_checkpointing import checkpoint_blocks
from shoal.training.checkpoint.background import BackgroundSaver
from shoal.training.checkpoint.contents import TrainingProgress, random_state, set_random_state, snapshot
from shoal.training.checkpoint.restore import restore
from shoal.training.checkpoint.store import CheckpointStore, ShardedStore
from shoal.training.compile import compile_model
from shoal.training.device_memory import peak_bytes, reset_peak
from shoal.training.ema import EMA
from shoal.training.loop import Clock, Decision, TrainConfig, TrainingLoop, evaluate_split, total_steps, train
from shoal.training.lr_schedule import learning_rate
from shoal.training.mixed_precision import autocast, make_scaler
from shoal.training.optimizer import build_optimizer
from shoal.training.profiler import StepProfiler
from shoal.training.throughput import Workload, peak_flops

OUTCOME = "outcome.json"

# Compares a trial with others at an evaluation: (step, metrics) -> whether it goes on.
DecideFn = Callable[[int, dict[str, float]], Decision]

# Of a curve with track.every_steps=auto; MLflow takes some 80 us of CPU for a point, and draws fewer.
MAX_POINTS = 1000

STOP_POLL_S = {True: 0.2, False: 5.0}  # by whether the run folder is on a disk


@dataclass(frozen=True)
class WorkerSpec:
    """What the driver tells every worker; picklable."""

    config: RunConfig
    folder: str
    attempt: int
    dataset_info: DatasetInfo
    preprocessing: PreprocessingSpec
    flops_per_sample: int | None = None  # of a forward pass, where it was measured


def run_worker(
    spec: WorkerSpec,
    shard: Shard,
    collective: Collective,
    device: torch.device,
    decide: DecideFn | None = None,
    watches_system: bool = True,
) -> None:
    """Train this worker's part to the end or to a requested stop; rank 0 leaves `outcome.json`.

    Args:
        decide: asked on rank 0 after each evaluation whether training goes on.
        watches_system: whether the load of this host is noted meanwhile.

    Raises:
        StorageError: this node does not see the run folder.
        CheckpointError: no checkpoint is sound, or the one found is of another model.
        DivergedError: the loss is not finite.
    """
    config, dataset_info = spec.config, spec.dataset_info
    folder = RunFolder(spec.folder)
    identity = folder.identity()
    _make_deterministic(config, device)
    reset_peak(device)
    is_first = collective.rank == 0
    task = make_task(config.task, dataset_info.transform, config.data, config.seed)
    shard = ViewedShard(shard, task.view) if task.view else shard
    model = build_model_for(config.model, dataset_info.transform, config.task, config.seed)
    if not collective.is_sharded:  # then it need not fit the device as a whole
        model.to(device)
    if config.train.activation_checkpointing:
        checkpoint_blocks(model)
    if config.train.compile:
        compile_model(model, device)
    else:
        use_onednn(model)
    forward = _wrap(config.train, model, task, shard, collective)
    optimizer = build_optimizer(model, config.optim)
    scaler = make_scaler(config.train.precision, device.type)
    ema = EMA(model, config.train.ema) if config.train.ema else None
    store = (ShardedStore if collective.is_sharded else CheckpointStore)(folder, config.checkpoint.keep)
    progress = _resume(store, model, optimizer, scaler, ema, collective, config.seed)
    journal = Journal(folder, spec.attempt) if is_first else NoJournal()
    monitor = (
        SystemMonitor(journal, identity["start_ms"])
        if watches_system and isinstance(journal, Journal)
        else None
    )
    if monitor:
        monitor.start()
    metadata = {"attempt": spec.attempt, "num_workers": collective.size, "run_key": identity["key"]}
    saver = BackgroundSaver(store, metadata, dataset_info.model_dump_json().encode())
    workload = _workload(spec, collective.size, device)
    clock, started, done_before = Clock(), time.perf_counter(), progress.seconds
    samples_before = progress.samples

    def save(progress: TrainingProgress, is_due: bool) -> None:
        states = collective.gather(random_state())[:: collective.size // collective.data_size]
        progress.seconds = done_before + time.perf_counter() - started
        if is_first or collective.is_sharded:
            taken = snapshot(model, optimizer, progress, states, scaler, ema, saver.take_spare())
            if not is_due:
                saver.hold(taken)
                return
            journal.sync()
            metadata["mlflow_run_id"] = folder.identity().get("run_id")
            saver.save(taken)

    steps = total_steps(config.train, shard.lanes.steps)
    profiler = StepProfiler(folder, device, steps - progress.step) if config.profile and is_first else None
    job = TrainingLoop(
        config=config.train,
        model=model,
        forward=forward,
        optimizer=optimizer,
        learning_rate=lambda step: learning_rate(config.optim, step, steps),
        clip_norm=config.optim.clip_norm,
        task=task,
        shard=shard,
        collective=collective,
        metric_log=_Paced(journal, clock, progress, workload, device),
        save=save,
        is_stop_requested=_StopFile(folder) if is_first else (lambda: False),
        is_save_due=lambda: saver.is_due,
        decide=lambda progress: _decide_on_all(decide, collective, progress),
        save_every=config.checkpoint.every_steps,
        log_every=log_every(config, steps),
        has_validation=dataset_info.rows[VALIDATION] > 0,
        accumulation=make_accumulation(
            config.train.micro_batch_size, model, forward, collective, shard.lanes.num_workers
        ),
        scaler=scaler,
        ema=ema,
        after_step=profiler.step if profiler else (lambda: None),
    )
    try:
        ended = train(job, progress, clock)
        seconds = time.perf_counter() - started
        outcome = _final_evaluation(job, dataset_info) if ended in ("finished", "stop") else {}
        peaks = collective.gather(peak_bytes(device))
        if ended in ("finished", "stop") and collective.is_sharded:
            _add_weights(store, saver, model, progress, is_first)
    except BaseException:
        if collective.is_sharded:
            saver.drop()  # the others may not come to write their parts of it
        raise
    finally:
        if profiler:
            profiler.close()
        saver.close()
        if monitor:
            monitor.stop()
        journal.sync()
    if is_first:
        journal.log(progress.step, outcome.get("test_metrics", {}))
        journal.sync()
        folder.write_json(
            OUTCOME,
            {
                "ended": ended,
                "progress": asdict(progress),
                "steps_planned": steps,
                "seconds": done_before + seconds,
                "attempt_seconds": seconds,
                "samples_before": samples_before,
                "shares": _shares(clock, seconds),
                "rates": workload.rates((progress.samples - samples_before) / max(_busy(clock), 1e-9)),
                "peak_memory_bytes": peaks,
                "micro_batch_size": job.accumulation.size,
                "world_size": collective.size,
                "device": str(device),
                "transport": getattr(collective, "transport", None),
                "checkpoint_blocked_s": saver.blocked_s,
                "host": socket.gethostname(),
                **outcome,
            },
        )


def resident_shard(
    spec: WorkerSpec, rows: WorkerRows, rank: int, size: int, device: torch.device
) -> ResidentShard:
    """Make a shard of the rows this worker was dealt, on its device."""
    on_device = {name: Rows.of(*arrays, device) for name, arrays in rows.items()}
    return ResidentShard(
        spec.dataset_info.lanes(spec.preprocessing, rank, size), on_device.pop(TRAIN), on_device
    )


def log_every(config: RunConfig, steps: int) -> int:
    """Return every how many of all steps a metric point is recorded."""
    every = config.track.every_steps
    return max(1, steps // MAX_POINTS) if every == "auto" else every


def _decide_on_all(decide: DecideFn | None, collective: Collective, progress: TrainingProgress) -> Decision:
    """Ask on rank 0; every worker hears the same."""
    if decide is None:
        return "continue"
    decision = decide(progress.step, dict(progress.metrics)) if collective.rank == 0 else "continue"
    return collective.broadcast(decision)  # type: ignore[no-any-return]


class _Paced:
    """Adds throughput and memory to what the loop records at each evaluation."""

    def __init__(
        self,
        journal: Journal | NoJournal,
        clock: Clock,
        progress: TrainingProgress,
        workload: Workload,
        device: torch.device,
    ) -> None:
        self._journal, self._clock, self._progress = journal, clock, progress
        self._workload, self._device = workload, device
        self._samples, self._busy = progress.samples, 0.0

    def log(self, step: int, metrics: dict[str, float], at_s: float | None = None) -> None:
        if "val/loss" in metrics:
            busy = _busy(self._clock)
            rate = (self._progress.samples - self._samples) / max(busy - self._busy, 1e-9)
            self._samples, self._busy = self._progress.samples, busy
            perf = self._workload.rates(rate) | {"peak_memory_bytes": float(peak_bytes(self._device))}
            metrics = metrics | {f"perf/{name}": value for name, value in perf.items()}
        self._journal.log(step, metrics, at_s)

    def flush(self) -> None:
        self._journal.flush()


class _StopFile:
    """Whether the driver asked for a stop, looked up a few times a second at most."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder, self._next, self._found = folder, 0.0, False

    def __call__(self) -> bool:
        if not self._found and time.monotonic() >= self._next:
            self._found = self._folder.exists(STOP)
            self._next = time.monotonic() + STOP_POLL_S[self._folder.is_local]
        return self._found


def _make_deterministic(config: RunConfig, device: torch.device) -> None:
    """Same config, same worker count: the same bits."""
    torch.set_num_threads(max(1, int(config.scale.cpus_per_worker)))
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True, warn_only=True)


def _wrap(
    config: TrainConfig, model: nn.Module, task: Task, shard: Shard, collective: Collective
) -> nn.Module:
    """Have gradients added up in backward, unless that must wait until it is known that memory sufficed."""
    size = config.micro_batch_size
    if size == "auto":
        return model

    def warmup(module: nn.Module) -> None:
        """One forward and backward that leaves gradients and nothing else."""
        batch = next(shard.batches(epoch=0, start=0))
        piece = split_batch(batch, size or len(batch.targets), 1)[0]
        with preserve_state(model):
            module.train()
            with autocast(config.precision, batch.inputs.device.type):
                outputs = module(piece.inputs)
            task.loss(outputs, piece).backward()

    return collective.wrap(model, warmup)


def _workload(spec: WorkerSpec, workers: int, device: torch.device) -> Workload:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    peak = peak_flops(name, spec.config.train.precision)
    transform = spec.dataset_info.transform
    tokens = transform.input_shape[0] if transform.tokenizer else None
    return Workload(spec.flops_per_sample, tokens, peak and peak * workers)


def _resume(
    store: CheckpointStore,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: GradScaler,
    ema: EMA | None,
    collective: Collective,
    seed: int,
) -> TrainingProgress:
    """Load the newest sound checkpoint, the same on every worker, or start with seeded random states."""
    name: str | None = None
    if collective.rank == 0:
        name, _ = store.latest()  # the driver has told of corrupt ones
    name = collective.broadcast(name)
    states = store.optimizer(name)["random"] if name else []
    _seed_randomness(seed, collective.data_rank)
    if name is None:
        return TrainingProgress()
    progress = restore(store, name, model, optimizer, scaler, ema)
    if len(states) == collective.data_size:
        set_random_state(states[collective.data_rank])
    else:
        _seed_randomness(seed + progress.step, collective.data_rank)
    return progress


def _seed_randomness(seed: int, rank: int) -> None:
    """Each part of the data gets numbers of its own (dropout), a function of the seed and its rank."""
    mixed = int(np.random.SeedSequence([seed, rank]).generate_state(1)[0])
    torch.manual_seed(mixed)
    np.random.seed(mixed)
    random.seed(mixed)


def _add_weights(
    store: CheckpointStore,
    saver: BackgroundSaver,
    model: nn.Module,
    progress: TrainingProgress,
    is_first: bool,
) -> None:
    """Give the last checkpoint of a sharded model its whole weights, which are what is delivered."""
    weights = gather_full_tensors(model.state_dict(), keeps=is_first)
    saver.wait()
    if is_first:
        store.add_weights(progress.step, weights)


def _final_evaluation(job: TrainingLoop, dataset_info: DatasetInfo) -> dict[str, Any]:
    """Measure on the test split, or on the validation split where there is none; each sample once."""
    splits = [name for name in (TEST, VALIDATION) if dataset_info.rows[name]]
    if not splits:
        return {}
    sums = evaluate_split(job, splits[0])
    measured = job.task.metrics(sums)
    outcome: dict[str, Any] = {"split": splits[0]}
    if splits[0] == TEST:
        outcome["test_metrics"] = {f"test/{name}": value for name, value in measured.items()}
    if isinstance(job.task, Classification) and (counts := job.task.confusion(sums)) is not None:
        outcome["confusion"] = counts.tolist()
    if dataset_info.rows[VALIDATION]:
        final = evaluate_split(job, VALIDATION)
        outcome["val_metrics"] = {f"val/{name}": value for name, value in job.task.metrics(final).items()}
    return outcome


def _busy(clock: Clock) -> float:
    """Seconds of training proper, without evaluation, checkpoints and records."""
    return sum(clock.spent[name] for name in ("data", "compute", "gradient_sync"))


def _shares(clock: Clock, seconds: float) -> dict[str, float]:
    names = ("data", "compute", "gradient_sync", "evaluate", "checkpoint", "tracking")
    return {name: clock.spent[name] / max(seconds, 1e-9) for name in names}
