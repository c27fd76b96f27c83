"""One worker's part of a run, from the config and its shard to trained weights. Imports no Ray.

`scale.num_workers=0` calls `run_worker` in the driver's own process; with workers, Ray Train calls it in each.
The way of a batch: `run_worker` -> `shoal.training.loop.train` -> `update`.
"""

import contextlib
import logging
import os
import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import torch

from shoal.config import import_path, objects, secrets
from shoal.data.dataset_info import DatasetInfo
from shoal.data.loader import Shard
from shoal.data.preprocessing_spec import PreprocessingSpec
from shoal.data.sampler import TEST, VALIDATION
from shoal.devices import cuda_name, reset_peak
from shoal.distributed.process_group import Collective
from shoal.runs.callbacks import Attempt, CheckpointWriter, StopFile, ThroughputLog
from shoal.runs.config import RunConfig
from shoal.runs.goodput import observed_mtbf_s
from shoal.runs.selection import select_weights
from shoal.runs.timeline import WorkerTimeline, worker_file
from shoal.storage.folder import Folder
from shoal.storage.records import Ending, Outcome, Progress
from shoal.storage.run_folder import RunFolder
from shoal.tasks.average_precision import curves_of
from shoal.tasks.classification import Classification
from shoal.tracking.journal import Journal, NoJournal
from shoal.tracking.system_metrics import SystemMonitor
from shoal.training.assemble import assemble
from shoal.training.checkpoint.contents import TrainingProgress
from shoal.training.checkpoint.interval import make_pause
from shoal.training.checkpoint.store import CheckpointStore, ShardedStore
from shoal.training.clock import STORAGE, Clock
from shoal.training.device_memory import peak_bytes
from shoal.training.loop import Callbacks, Decision, TrainingLoop, evaluate_split, train
from shoal.training.profiler import StepProfiler
from shoal.training.resume import resume_or_start
from shoal.training.throughput import Workload, peak_flops

# Compares a trial with others at an evaluation: (step, metrics) -> whether it goes on.
DecideFn = Callable[[int, dict[str, float]], Decision]

# Of a curve with track.every_steps=auto; MLflow takes some 80 us of CPU for a point, and draws fewer.
MAX_POINTS = 1000
# Of the rows that a saved model is verified on, at most; and of a large model's rows at least.
VERIFIED_ROWS, FEWEST_VERIFIED, VERIFICATION_FLOPS = 20_000, 32, 1e13

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerSpec:
    """What the driver passes to every worker; picklable."""

    config: RunConfig
    folder: str
    attempt: int
    dataset_info: DatasetInfo
    preprocessing: PreprocessingSpec
    flops_per_sample: int | None = None  # of a forward pass, where it was measured
    secrets: dict[str, str] = field(default_factory=secrets.hidden, repr=False)  # of addresses
    objects: dict[str, bytes] = field(
        default_factory=dict, repr=False
    )  # that were passed from Python: pickles
    search_path: tuple[str, ...] = field(default_factory=import_path.search_path, repr=False)
    sweep_folder: str | None = None  # of a trial: the folder that holds the lease of the attempt
    start: int | None = None  # of a worker that may be lost: how often the attempt's were started before

    def enter_process(self) -> None:
        """Let this process have the addresses' secrets, the objects and the modules of the driver."""
        import_path.search_also(self.search_path)
        secrets.register(self.secrets)
        objects.receive(self.objects)

    def open_folder(self) -> RunFolder:
        """Return the run folder, which this worker may write until a later attempt, or its workers' next start."""
        holder = Folder(self.sweep_folder) if self.sweep_folder else None
        return RunFolder(self.folder).of_attempt(self.attempt, holder, self.start)


@dataclass(frozen=True)
class FinalMetrics:
    """What the last evaluation measured; each sample of a split counts once.

    Attributes:
        split: what `confusion` is of: the test split, or the validation split where there is none.
        confusion: [true class][predicted class] counts of a classification.
        precision_recall: precision by class and recall of a detection.
        sampled_rows: of the split that the saved model is verified on, where all its rows would take too long.
        sampled_metrics: measured on those.
    """

    split: str | None = None
    test_metrics: dict[str, float] = field(default_factory=dict)
    val_metrics: dict[str, float] = field(default_factory=dict)
    confusion: list[list[int]] | None = None
    precision_recall: dict[str, list[float]] | None = None
    sampled_rows: int | None = None
    sampled_metrics: dict[str, float] = field(default_factory=dict)


def run_worker(
    spec: WorkerSpec,
    shard: Shard,
    collective: Collective,
    device: torch.device,
    decide: DecideFn | None = None,
    watches_system: bool = True,
    clock: Clock | None = None,
    is_to_leave: Callable[[], bool] = lambda: False,
) -> None:
    """Train this worker's part to the end or to a requested stop; rank 0 leaves `outcome.json`.

    Args:
        decide: asked on rank 0 after each evaluation whether training goes on.
        watches_system: whether the load of this host is logged meanwhile.
        clock: which another thread may look at meanwhile.
        is_to_leave: whether a host is to be left, which stops the training as a requested stop does.

    Raises:
        StorageError: this node does not see the run folder.
        CheckpointError: no checkpoint is sound, or the one found is of another model.
        DivergedError: the loss is not finite.
    """
    config, info, clock = spec.config, spec.dataset_info, clock or Clock()
    folder = spec.open_folder()
    identity = folder.identity()  # before anything costly: does this node see the folder?
    _make_deterministic(config, device)
    reset_peak(device)
    loop = assemble(config, info.transform, shard, collective, device, info.rows[VALIDATION] > 0)
    store = (ShardedStore if collective.is_sharded else CheckpointStore)(folder, config.checkpoint.keep)
    timeline = _timeline(spec, folder, collective.rank, clock)
    attempt = _restore(loop, store, spec, device, timeline, clock)
    journal = Journal(folder, spec.attempt) if collective.rank == 0 else NoJournal()
    with contextlib.ExitStack() as stack:
        stack.callback(journal.sync)
        stack.callback(timeline.sync)
        if watches_system and isinstance(journal, Journal):
            _watch_system(stack, journal, identity.start_ms)
        checkpoints = stack.enter_context(
            _checkpoint_writer(spec, loop, store, folder, journal, attempt, timeline, identity.key)
        )
        callbacks = Callbacks(
            metric_log=ThroughputLog(journal, attempt, device, timeline),
            save=checkpoints.save,
            is_stop_requested=_stop_requests(folder, collective.rank, is_to_leave),
            is_save_due=checkpoints.is_due,
            decide=lambda progress: _decide_on_all(decide, collective, progress, clock),
            after_step=_profiler_step(stack, config, folder, loop, attempt, device),
            save_every=config.checkpoint.every_steps,
            log_every=log_every(config, loop.total_steps),
        )
        ended = train(loop, callbacks, attempt.progress, clock)
        _finish(checkpoints, ended, attempt, timeline)
        selected = select_weights(loop, store, attempt.progress) if _is_complete(ended) else None
        outcome = _outcome(loop, ended, attempt, spec, device, selected)
        if selected is not None:
            timeline.enter("delivery")
            checkpoints.add_full_weights(selected)
    if collective.rank == 0:
        _write(outcome, checkpoints.blocked_s, folder, journal, clock)


def _stop_requests(folder: RunFolder, rank: int, is_to_leave: Callable[[], bool]) -> Callable[[], bool]:
    """Return what asks for a stop: the driver's file, at which worker 0 looks, or a host that is to be left."""
    if rank:
        return is_to_leave
    stop_file = StopFile(folder)
    return lambda: stop_file() or is_to_leave()


def _restore(
    loop: TrainingLoop,
    store: CheckpointStore,
    spec: WorkerSpec,
    device: torch.device,
    timeline: WorkerTimeline,
    clock: Clock,
) -> Attempt:
    """Start, or go on from the last checkpoint; return the account of the attempt that begins with it."""
    timeline.enter("restore")
    progress = resume_or_start(loop, store, spec.config.seed)
    timeline.enter("steps", progress.step)
    size, is_elastic = loop.collective.size, spec.config.scale.is_elastic
    return Attempt(progress, _workload(spec, size, device), clock, size if is_elastic else None)


def _checkpoint_writer(
    spec: WorkerSpec,
    loop: TrainingLoop,
    store: CheckpointStore,
    folder: RunFolder,
    journal: Journal | NoJournal,
    attempt: Attempt,
    timeline: WorkerTimeline,
    key: str,
) -> CheckpointWriter:
    config = spec.config.checkpoint
    return CheckpointWriter(
        loop,
        store,
        folder,
        journal,
        attempt,
        {"attempt": spec.attempt, "num_workers": loop.collective.size, "run_key": key},
        spec.dataset_info,
        timeline,
        make_pause(config, folder.is_local, lambda: observed_mtbf_s(folder)),
    )


def _finish(checkpoints: CheckpointWriter, ended: Ending, attempt: Attempt, timeline: WorkerTimeline) -> None:
    """Wait for the checkpoints."""
    attempt.clock.enter("finish")
    timeline.enter("checkpoint", attempt.progress.step)
    checkpoints.finish()
    timeline.enter("evaluation" if _is_complete(ended) else "down")


def _timeline(spec: WorkerSpec, folder: RunFolder, rank: int, clock: Clock) -> WorkerTimeline:
    """Return where worker 0 of a run, but not of a trial, says what its time goes to."""
    if rank or spec.sweep_folder:
        return WorkerTimeline(clock)
    return WorkerTimeline(clock, folder, worker_file(spec.attempt, spec.start or 0))


def _watch_system(stack: contextlib.ExitStack, journal: Journal, start_ms: int) -> None:
    monitor = SystemMonitor(journal, start_ms)
    monitor.start()
    stack.callback(monitor.stop)


def _write(
    outcome: Outcome, blocked_s: float, folder: RunFolder, journal: Journal | NoJournal, clock: Clock
) -> None:
    clock.enter(STORAGE)
    journal.log(outcome.progress.step, outcome.test_metrics)
    journal.sync()
    folder.save(outcome.model_copy(update={"checkpoint_blocked_s": blocked_s}))


def log_every(config: RunConfig, steps: int) -> int:
    """Return how many of all steps there are to a logged point of train/loss."""
    every = config.track.every_steps
    return max(1, steps // MAX_POINTS) if every == "auto" else every


def _make_deterministic(config: RunConfig, device: torch.device) -> None:
    """Same config, same number of workers: the same bits."""
    torch.set_num_threads(max(1, int(config.scale.cpus_per_worker)))
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True, warn_only=True)


def _workload(spec: WorkerSpec, workers: int, device: torch.device) -> Workload:
    peak = peak_flops(cuda_name(device), spec.config.train.precision)
    transform = spec.dataset_info.transform
    tokens = transform.input_shape[0] if transform.tokenizer else None
    return Workload(spec.flops_per_sample, tokens, peak and peak * workers)


def _profiler_step(
    stack: contextlib.ExitStack,
    config: RunConfig,
    folder: RunFolder,
    loop: TrainingLoop,
    attempt: Attempt,
    device: torch.device,
) -> Callable[[], None]:
    """Return what is called after each step: the profiler's, on rank 0 of a run that is profiled."""
    if not (config.profile and loop.collective.rank == 0):
        return lambda: None
    profiler = StepProfiler(folder, device, loop.total_steps - attempt.progress.step)
    stack.callback(profiler.close)

    def step() -> None:
        with attempt.clock.on("profile"):
            profiler.step()

    return step


def _decide_on_all(
    decide: DecideFn | None, collective: Collective, progress: TrainingProgress, clock: Clock
) -> Decision:
    """Ask on rank 0; every worker receives the same decision."""
    if decide is None:
        return "continue"
    with clock.on("decide"):
        decision = decide(progress.step, dict(progress.metrics)) if collective.rank == 0 else "continue"
        return collective.broadcast(decision)  # type: ignore[no-any-return]


def _is_complete(ended: Ending) -> bool:
    """Whether the weights are a result, and not what a later attempt resumes from."""
    return ended in ("finished", "stop")


def _outcome(
    loop: TrainingLoop,
    ended: Ending,
    attempt: Attempt,
    spec: WorkerSpec,
    device: torch.device,
    selected_step: int | None,
) -> Outcome:
    """Evaluate the weights that are the result, all workers together, and return what this worker found."""
    seconds = attempt.seconds
    attempt.clock.enter("final evaluation")
    final = _final_evaluation(loop, spec) if _is_complete(ended) else FinalMetrics()
    peaks = loop.collective.gather(peak_bytes(device))
    return Outcome(
        ended=ended,
        progress=Progress(**asdict(attempt.progress)),
        steps_planned=loop.total_steps,
        seconds=attempt.seconds_before + seconds,
        attempt_seconds=seconds,
        samples_before=attempt.samples_before,
        shares=attempt.clock.shares(seconds),
        rates=attempt.rates(attempt.samples_before),
        peak_memory_bytes=peaks,
        micro_batch_size=loop.accumulation.size,
        world_size=loop.collective.size,
        device=str(device),
        transport=getattr(loop.collective, "transport", None),
        host=socket.gethostname(),
        split=final.split,
        test_metrics=final.test_metrics,
        val_metrics=final.val_metrics,
        confusion=final.confusion,
        precision_recall=final.precision_recall,
        sampled_rows=final.sampled_rows,
        sampled_metrics=final.sampled_metrics,
        selected_step=selected_step,
        depends_on_workers=loop.dependence.reason,
    )


def _final_evaluation(loop: TrainingLoop, spec: WorkerSpec) -> FinalMetrics:
    """Evaluate on the test split and on the validation split, where they have rows."""
    rows = spec.dataset_info.rows
    added = {split: evaluate_split(loop, split) for split in (TEST, VALIDATION) if rows[split]}
    if not added:
        return FinalMetrics()
    metrics = {split: found.results() for split, found in added.items()}
    split = next(iter(added))
    counts = loop.task.confusion(added[split].sums) if isinstance(loop.task, Classification) else None
    curves = curves_of(added[split].measures)
    verified = VALIDATION if VALIDATION in added else TEST
    most = rows_to_verify(spec.flops_per_sample)
    sampled = most if most < rows[verified] else None
    return FinalMetrics(
        split,
        {f"test/{name}": value for name, value in metrics.get(TEST, {}).items()},
        {f"val/{name}": value for name, value in metrics.get(VALIDATION, {}).items()},
        None if counts is None else counts.tolist(),
        None if curves is None else curves.precision,
        sampled,
        evaluate_split(loop, verified, first=sampled).results() if sampled else {},
    )


def rows_to_verify(flops_per_sample: int | None) -> int:
    """Return the most rows that a clean process measures a saved model on, in a minute or two of a CPU.

    Args:
        flops_per_sample: of a forward pass.
    """
    return min(VERIFIED_ROWS, max(FEWEST_VERIFIED, int(VERIFICATION_FLOPS / (flops_per_sample or 1))))
