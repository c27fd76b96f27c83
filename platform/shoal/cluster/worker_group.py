"""Ray Train workers: TorchTrainer around `run_worker`, and what to do when one is lost."""

import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from shoal.cluster.elastic import GroupSize
from shoal.cluster.free_room import RoomWatch
from shoal.cluster.group_watch import GroupWatch
from shoal.cluster.placement import Placement
from shoal.cluster.ray_private import found_no_room
from shoal.cluster.replay import Replay
from shoal.cluster.session import GONE_PATIENCE_S, RayWatch, own_device
from shoal.cluster.shard_store import ShardRefs, ShardsFn, make_shard
from shoal.cluster.status_board import speaking
from shoal.cluster.worker_failure import error_of, is_peer_error, load_error
from shoal.devices import Kind
from shoal.distributed.parallelism import make_group
from shoal.distributed.shm_allreduce import COLLECTIVE_TIMEOUT_S
from shoal.errors import Interrupted, LeaseLostError, StorageError
from shoal.processes import lossy_streams
from shoal.runs.config import ScaleConfig
from shoal.runs.failure_policy import account_of
from shoal.runs.timeline import Timeline
from shoal.runs.worker import DecideFn, WorkerSpec, run_worker
from shoal.storage.failures import STOPPED_OUTAGE_S
from shoal.storage.records import ErrorRecord, FailureRecord, Outcome
from shoal.storage.run_folder import SAVING, RunFolder
from shoal.tracking.journal import has_journal
from shoal.training.clock import Clock

logger = logging.getLogger(__name__)

STOP_PATIENCE_S = 60.0
RAY_STATE = ".ray"


class WorkerGroup:
    """The Ray Train workers of one run, in an open Ray session."""

    def __init__(
        self,
        scale: ScaleConfig,
        kind: Kind,
        shards: ShardsFn,
        command: str | None = None,
        timeline: Timeline | None = None,
    ) -> None:
        """Take what the workers need.

        Args:
            kind: of the device that each has.
            shards: returns the rows, divided into so many parts.
            command: that a person gives to go on after a failure.
            timeline: of a run; a trial has none.
        """
        self._scale, self._kind, self._shards = scale, kind, shards
        self._command, self._timeline = command, timeline
        self._workers: int | None = None  # of the last start

    def train(self, spec: WorkerSpec, folder: RunFolder, decide: DecideFn | None = None) -> None:
        """Run `run_worker` on all workers until it ends; after a loss, a hang or a drained host, run it again.

        Args:
            decide: called by rank 0 in its own process; picklable.

        Raises:
            TrainingError: user code raised, or more attempts failed than `scale.max_failures` without a checkpoint.
            StorageError: the run folder cannot be written; another attempt would end alike.
            Interrupted: the stop file is there and the workers did not end.
        """
        earlier: FailureRecord | None = None
        hosts: frozenset[str] = frozenset()
        why = ""
        placement = Placement(spec.sweep_folder or spec.folder)
        replays = spec.sweep_folder is None  # a trial that diverges is a result
        with GroupSize(self._scale, self._needs, logger.warning) as size:
            for number in itertools.count():
                workers = self._begin(size, number, why, hosts, folder)
                replay = Replay(folder, earlier, placement)
                selector = placement.selector(self._needs, workers, replay.host, number > 0)
                room = RoomWatch(self._needs, workers, hosts, logger.warning, selector)
                with GroupWatch(workers, room, size, replay) as watch:
                    error = self._attempt(
                        replace(spec, start=folder.begin_start()), workers, folder, decide, watch
                    )
                    if error is None and not self._goes_on(watch, folder):
                        replay.end(_last_step(folder))
                        return
                    earlier = replay.earlier
                    if error is None:
                        why, hosts = self._leave(watch, folder), watch.hosts - watch.left
                        continue
                    if found_no_room(error):
                        why = f"there was no room any more for {workers} workers"
                        continue
                    if folder.is_stop_requested(by_others=False):
                        raise _interrupted()
                    decision = watch.decide(error, folder, self._scale.max_failures, replays)
                placement.charge(decision.host, decision.record.kind, decision.record.message)
                earlier, hosts = decision.record.replace(next_command=self._command), watch.hosts or hosts
                with contextlib.suppress(OSError):  # it may be what failed
                    folder.clear_leftovers()
                    folder.save(earlier)
                if self._timeline:
                    self._timeline.mark("down", lost="hang" if earlier.kind == "hang" else "down")
                if not decision.retries:
                    raise error_of(decision, folder) from error
                why = earlier.message
                logger.warning("%s", why)

    def _begin(self, size: GroupSize, number: int, why: str, hosts: frozenset[str], folder: RunFolder) -> int:
        """Choose how many workers are started, once there is room for them, and say so; return how many."""

        def check() -> None:
            if folder.is_stop_requested(by_others=False):
                raise _interrupted()

        def enter(is_waiting: bool) -> None:
            if self._timeline and is_waiting:
                self._timeline.enter("waiting")

        workers, before = size.choose(hosts, check, enter), self._workers
        if before not in (None, workers):
            logger.warning("training goes on with %d instead of %d workers", workers, before)
            why = f"{why}; with {workers} instead of {before} workers"
        self._workers = workers
        if self._timeline:
            elastic = {"size": workers} if self._scale.is_elastic else {}
            self._timeline.mark("start", workers=number, why=why, **elastic)
        return workers

    @staticmethod
    def _goes_on(watch: GroupWatch, folder: RunFolder) -> bool:
        """Whether the workers have ended before their last step since they were asked to, so that others go on."""
        outcome = folder.load(Outcome) if watch.was_left else None
        return (
            outcome is not None
            and outcome.ended == "interrupted"
            and not folder.is_stop_requested(by_others=False)
        )

    def _leave(self, watch: GroupWatch, folder: RunFolder) -> str:
        """Drop how the workers ended, which were asked to; return why."""
        folder.delete(Outcome.file)
        if self._timeline and self._scale.is_elastic:
            self._timeline.mark("down")
        if watch.left:
            return f"interrupted: {', '.join(sorted(watch.left))} was drained"
        return f"interrupted: there is room for {watch.grows_to} workers"

    @property
    def _needs(self) -> dict[str, float]:
        """What each worker asks of a node, by Ray's names."""
        return {"CPU": self._scale.cpus_per_worker} | self._kind.resources

    def _failure_config(self, room: RoomWatch) -> Any:
        """Ray starts no workers again; it waits for their places.

        Not for ever, where fewer workers can do without them, or hosts that were left out may be needed after all.
        """
        from ray.train import FailureConfig

        gives_up = self._scale.is_elastic or room.selector
        return FailureConfig(max_failures=0, controller_failure_limit=0 if gives_up else -1)

    def _trainer(
        self, spec: WorkerSpec, workers: int, folder: RunFolder, decide: DecideFn | None, watch: GroupWatch
    ) -> Any:
        """Return Ray's trainer of one start."""
        from ray.train.torch import TorchConfig, TorchTrainer

        return TorchTrainer(
            _ray_worker,
            train_loop_config={
                "spec": spec,
                "kind": self._kind,
                "shard_refs": self._shards(self._scale.parts(workers)),
                "decide": decide,
                "board": watch.board,
            },
            torch_config=TorchConfig(backend=self._kind.backend, timeout_s=int(COLLECTIVE_TIMEOUT_S)),
            **self._configs(spec, workers, folder, watch),
        )

    def _configs(
        self, spec: WorkerSpec, workers: int, folder: RunFolder, watch: GroupWatch
    ) -> dict[str, Any]:
        """Return where the workers of one start are placed, and where Ray keeps its state."""
        from ray.train import RunConfig, ScalingConfig

        filesystem, path = folder.in_arrow(RAY_STATE)
        scaling = ScalingConfig(
            num_workers=workers,
            use_gpu=self._kind.resource == "GPU",
            resources_per_worker=self._needs,
            label_selector=watch.room.selector,
        )
        run = RunConfig(
            name=f"attempt-{spec.attempt}-{spec.start}",
            storage_path=path,
            storage_filesystem=None if folder.is_local else filesystem,
            failure_config=self._failure_config(watch.room),
        )
        return {"scaling_config": scaling, "run_config": run}

    def _attempt(
        self, spec: WorkerSpec, workers: int, folder: RunFolder, decide: DecideFn | None, watch: GroupWatch
    ) -> BaseException | None:
        """Fit once, in a thread: Ray must not replace our signal handler, and a stop must not block."""
        folder.delete(ErrorRecord.file)
        trainer = self._trainer(spec, workers, folder, decide, watch)
        outcome: list[BaseException | None] = []

        def run() -> None:
            try:
                trainer.fit()
                outcome.append(None)
            except BaseException as error:
                outcome.append(error)

        thread = threading.Thread(target=run, name="shoal-trainer", daemon=True)
        thread.start()
        patience = StopPatience(folder, spec.attempt)
        while thread.is_alive():
            thread.join(timeout=0.1)
            patience.check()
            if patience.has_ended_without_ray():
                outcome.append(None)
                break
            watch.check(judges=not patience.is_waiting)
            if self._timeline:
                self._timeline.enter("waiting" if watch.is_waiting else "start")
        with contextlib.suppress(OSError):
            folder.delete(RAY_STATE)
        return outcome[0]


def _interrupted() -> Interrupted:
    return Interrupted("interrupted; the same command resumes from the last checkpoint")


def _last_step(folder: RunFolder) -> int:
    outcome = folder.load(Outcome)
    return outcome.progress.step if outcome else 0


class StopPatience:
    """How long workers are waited for once a stop was requested.

    They have `STOP_PATIENCE_S` to see the request; the checkpoint that follows may take as long as it takes.
    """

    def __init__(self, folder: RunFolder, attempt: int) -> None:
        self._folder, self._attempt = folder, attempt
        self._since_s: float | None = None
        self._have_seen_it = False
        self._ray = RayWatch()

    @property
    def is_waiting(self) -> bool:
        """Whether a stop was requested."""
        return self._since_s is not None

    def has_ended_without_ray(self) -> bool:
        """Whether the workers have ended as they were asked to, and Ray, whose server is gone, cannot say so.

        Raises:
            Interrupted: they do not end either.
        """
        if self._since_s is None or not (gone_s := self._ray.gone_for_s()):
            return False
        if self._folder.exists(Outcome.file):
            return True
        if gone_s > GONE_PATIENCE_S[self._folder.exists(SAVING)]:
            raise Interrupted("interrupted; Ray ended too: the same command resumes from the last checkpoint")
        return False

    def check(self) -> None:
        """Look whether it is over.

        Raises:
            Interrupted: the workers had made no step, do not react, or cannot save.
        """
        if self._since_s is None and not self._folder.is_stop_requested(by_others=False):
            return
        try:
            self._check()
        except StorageError as error:
            raise Interrupted(f"interrupted without a new checkpoint: {error}") from error

    def _check(self) -> None:
        if self._since_s is None:
            self._since_s = time.monotonic()
            if not has_journal(self._folder, self._attempt):
                raise Interrupted("interrupted before the first step; the same command resumes")
            return
        waited_s = time.monotonic() - self._since_s
        if waited_s > STOPPED_OUTAGE_S and self._folder.is_away:
            self._folder.exists(SAVING)  # raises, unless it has come back
        if waited_s > STOP_PATIENCE_S and not self._have_seen_it:
            self._have_seen_it = self._folder.exists(SAVING)
            if not self._have_seen_it:
                raise Interrupted(f"interrupted; the workers did not stop within {STOP_PATIENCE_S:.0f} s")


def _ray_worker(config: dict[str, Any]) -> None:
    """Train in one worker; Ray Train calls it."""
    import ray.train

    spec: WorkerSpec = config["spec"]
    rank = ray.train.get_context().get_world_rank()
    clock = Clock()
    spec.enter_process()
    with speaking(config["board"], rank, clock) as is_to_leave:
        try:
            _train(spec, config["kind"], config["shard_refs"], config["decide"], clock, is_to_leave)
        except Exception as error:
            _save_error(error, spec, rank, clock)
            raise


def _train(
    spec: WorkerSpec,
    kind: Kind,
    shard_refs: ShardRefs,
    decide: DecideFn | None,
    clock: Clock,
    is_to_leave: Callable[[], bool],
) -> None:
    device = own_device(kind)
    torch.set_num_threads(max(1, int(spec.config.scale.cpus_per_worker)))
    group = make_group(device, spec.config.scale)
    clock.enter("setup")
    shard = make_shard(spec, shard_refs, group.data_rank, group.data_size, device)
    with lossy_streams():
        run_worker(spec, shard, group, device, decide, decide is None, clock, is_to_leave)


def _save_error(error: Exception, spec: WorkerSpec, rank: int, clock: Clock) -> None:
    """Leave the first worker's own error in the run folder; Ray's account of it buries the cause."""
    with contextlib.suppress(OSError, LeaseLostError):
        folder = spec.open_folder()
        earlier = load_error(folder)
        if earlier is None or is_peer_error(earlier):
            scale = spec.config.scale
            lanes = spec.dataset_info.lanes(spec.preprocessing, rank // scale.tensor_size, scale.data_size)
            folder.save(account_of(error, clock, rank, lanes))
