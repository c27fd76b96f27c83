"""The driver of a sweep: carries out what the engine decides, keeps the records, and hands over the best model.

A trial is a run folder below the sweep's, with a journal and checkpoints of its own, and calls the same `work` as
`jobs/train.py`. All that a later attempt needs is in these folders: the engine looks at what they hold before it
runs anything.
"""

import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

from shoal.cluster import session
from shoal.cluster.actor_pool import ActorLost, ActorPool, Event
from shoal.cluster.dataset_cache import DatasetCache
from shoal.cluster.shard_store import spare_cpus
from shoal.cluster.trial_actor import TrialEnded, TrialReport, TrialSpec, TrialStarted
from shoal.cluster.tune_schedulers import Fifo, make_scheduler
from shoal.config.loading import to_yaml
from shoal.data.dataset_info import DatasetInfo
from shoal.errors import Interrupted, ShoalError, TrainingError
from shoal.runs.finalize import package_and_verify
from shoal.runs.lifecycle import RunLifecycle, request_stop
from shoal.runs.worker import OUTCOME, WorkerSpec
from shoal.storage.records import TrialRow
from shoal.storage.run_folder import (
    CHECKPOINTS,
    CONFIG,
    ERROR,
    IDENTITY,
    METADATA,
    RESULT,
    STOP,
    TRIALS,
    RunFolder,
)
from shoal.tasks.open_data import preprocessing_spec
from shoal.tracking.background import TrackerProcess
from shoal.tracking.journal import Journal
from shoal.tune.engine import LAG, Decision, Engine, Planned, Trial
from shoal.tune.report.write import Findings, write_report
from shoal.tune.trials import best, losers, points, ranked
from shoal.tune.validate import SweepPlan
from shoal.workflows.tune.exploit import exploit
from shoal.workflows.tune.mlflow_metadata import add_best, sweep_metadata
from shoal.workflows.tune.trial_history import TrialHistory
from shoal.workflows.tune.trial_progress import TrialProgress

logger = logging.getLogger(__name__)

WAIT_S = 0.25
STOP_PATIENCE_S = 30.0
SETTLE_S = 10.0
# So many trials that fail in the same way, with none that did not, are the user's error and not the trials'.
ALIKE = 3
STATUS = {"finished": "FINISHED", "stopped": "FINISHED", "killed": "KILLED"}  # MLflow's words; else FAILED


@dataclass(frozen=True)
class SweepStatus:
    """Where a sweep stands, for whoever shows it."""

    rows: list[TrialRow]
    best: TrialRow | None
    total: int
    running: int
    metric: str
    seconds: float
    note: str = ""


Listener = Callable[[SweepStatus], None]


def run_sweep(plan: SweepPlan, folder: RunFolder, listen: Listener = lambda status: None) -> dict[str, Any]:
    """Run a sweep to its end, or on from where an earlier attempt left off; returns what `result.json` holds.

    Raises:
        Interrupted: the folder's stop file appeared; trials have checkpoints and the runs are KILLED.
        ShoalError: the sweep failed; it is recorded as FAILED with the reason.
    """
    with _Sweep(plan, folder, listen) as sweep:
        sweep.run()
        return sweep.finish()


def finished_sweep(folder: RunFolder) -> dict[str, Any] | None:
    """Return the result of a sweep that came to its end, or None."""
    result: dict[str, Any] | None = folder.read_json(RESULT)
    return result if result and result["status"] == "FINISHED" else None


def covers(result: dict[str, Any] | None, total: int) -> bool:
    """Whether a sweep's result holds so many trials, each at its end: one that was extended is not done."""
    return bool(result) and result["trials"]["ended"] >= total and not result["is_out_of_time"]  # type: ignore[index]


class _Sweep(RunLifecycle):
    """One attempt at a sweep."""

    config: Any  # a SweepConfig

    def __init__(self, plan: SweepPlan, folder: RunFolder, listen: Listener) -> None:
        super().__init__(plan.config, folder, is_sweep=True)
        self.plan, self.listen = plan, listen
        self.work: dict[Trial, TrialProgress] = {}
        self.engine = Engine(Planned([]), Fifo())
        self.is_verified = False
        self.findings: Findings | None = None
        self.dataset_cache = DatasetCache()
        self.past = TrialHistory(self.config, self.dataset_cache)
        self._is_out_of_time = False

    tracker: TrackerProcess

    def make_tracker(self) -> TrackerProcess:
        """Track in a process of its own: hundreds of trials' records must not keep the driver from their reports."""
        return TrackerProcess(self.folder)

    def run(self) -> None:
        """Train all trials; what is left when the time budget ends is left for the same command later."""
        self.folder.delete(STOP)
        config, base = self.config, self.plan.base
        if base.dataset_info is not None:
            self._let_track(base.dataset_info)  # MLflow is imported, and its tables made, while Ray starts
        self.closing.callback(session.disconnect)
        use_gpu = session.connect(config.scale, spare_cpus(base))
        slots = self.plan.slots(session.resources(), spare_cpus(base), use_gpu)
        self._use_gpu = use_gpu
        self.pool: ActorPool[Trial] = ActorPool(slots, self.plan.actor_resources(use_gpu))
        dataset_info = self.dataset_cache.put(base)
        if base.dataset_info is None:
            self._let_track(dataset_info)
        self.journal = Journal(self.folder, self.attempt)
        most = self.dataset_cache.most_evaluations(self.plan.corner_configs)
        scheduler = make_scheduler(config.tune, config.domains, config.mode, most, config.seed)
        lag = max(LAG, slots)
        self.engine = Engine(self.plan.search(), scheduler, config.tune.repeat, lag, self._restore)
        try:
            self._loop()
        finally:
            self.pool.close()
            self.journal.sync()

    def _let_track(self, dataset_info: DatasetInfo) -> None:
        self.folder.write_json(METADATA, sweep_metadata(self.plan, dataset_info))
        self.tracker.start()

    def _restore(self, trial: Trial) -> None:
        self.past.restore(trial, self._folder(trial))

    def finish(self) -> dict[str, Any]:
        """Rank, hand over the best model, draw the report meanwhile."""
        rows, spec_ = self.rows(), self.best_first()
        if not spec_:
            raise TrainingError(self._why_nothing_came(rows))
        self.tracker.settle(SETTLE_S)
        self._tell("verifying the best model, drawing the report")
        won, metric, mode = self.engine.trials[spec_[0].number], self.config.tune.metric, self.config.mode
        with ThreadPoolExecutor(1) as aside:
            packaged = aside.submit(self._package_best, won)
            name = self.folder.identity()["name"]
            self.findings = write_report(self.folder, rows, name, metric, mode, self._now())
            packaged.result()
        run_id = self.work[won].folder.identity().get("run_id")
        add_best(self.folder, metric, spec_[0], run_id, self.findings.note)
        return self.write_result({"status": "FINISHED"})

    def rows(self) -> list[TrialRow]:
        """Return what is known of each trial that has begun, in their order."""
        return [self.work[trial].row(trial) for trial in self.engine.trials if trial in self.work]

    def write_result(self, ending: dict[str, Any]) -> dict[str, Any]:
        rows, spec_ = self.rows(), self.best_first()
        counts = {
            status: sum(row.status == status for row in rows) for status in {row.status for row in rows}
        }
        result = {
            **ending,
            **self.who(),
            "metric": self.config.tune.metric,
            "mode": self.config.mode,
            "best": self._best_result(spec_[0]) if spec_ else None,
            "trials": {"planned": self.plan.total, "ended": self._ended(), **counts},
            "worker_hours": sum(row.seconds for row in rows) * self.config.scale.num_workers / 3600,
            "total_seconds": time.time() - self.started,
            "records_complete": self.tracker.synced_at_s,
            "is_out_of_time": self._is_out_of_time,
            "rows": [asdict(row) for row in [*spec_, *(row for row in rows if row not in spec_)]],
            "findings": self.findings.lines if self.findings else {},
            "width_report": self.findings.width.text() if self.findings and self.findings.width else None,
            "scaling": self.findings.scaling.as_dict() if self.findings and self.findings.scaling else None,
            "disk_bytes": self._disk_bytes(),
            "attempt": self.attempt,
        }
        self.folder.write_json(RESULT, result)
        return result

    # -- the loop ------------------------------------------------------------------------------------------------

    def _loop(self) -> None:
        moved_s = time.monotonic()
        while True:
            has_moved = self._carry_out_clones() | self._start_what_can() | self._give_verdicts()
            self._close_given_up()
            self._tell()
            if self.engine.has_ended and self.pool.free == self.pool.size:
                return
            self._check_for_stop()
            self._check_budget()
            for trial, event in self.pool.wait(0.0 if has_moved else WAIT_S):
                has_moved = True
                self._handle(trial, event)
            moved_s = time.monotonic() if has_moved else moved_s
            self.engine.is_impatient = time.monotonic() - moved_s > 60.0

    def _start_what_can(self) -> bool:
        has_started = False
        while self._free_slots() > 0 and (trial := self.engine.choose()) is not None:
            self._start(trial)
            has_started = True
        return has_started

    def _give_verdicts(self) -> bool:
        decisions = self.engine.decisions()
        for trial, decision in decisions:
            self.work[trial].decisions[trial.reports[-1].step] = decision
            if not self.work[trial].is_replayed:
                self.pool.answer(trial, decision)
            elif decision == "continue":
                self._go_on(trial)
            else:
                self._leave(trial, decision)
        return bool(decisions)

    def _carry_out_clones(self) -> bool:
        clones = self.engine.take_clones()
        for clone in clones:
            exploit(clone, self.work[clone.trial], self.work[clone.source], self.config)
        return bool(clones)

    # -- one trial -----------------------------------------------------------------------------------------------

    def _start(self, trial: Trial) -> None:
        """Look at what an earlier attempt left of a trial, then run what is missing."""
        try:
            progress = self.work.get(trial) or self._open(trial)
        except ShoalError as error:
            self._refuse(trial, error)
            return
        progress.is_replayed = True
        # What was paused is wanted again: it passes the evaluation that it was paused at.
        passed: dict[Decision, Decision] = {"pause": "continue"}
        progress.decisions = {step: passed.get(one, one) for step, one in progress.decisions.items()}
        self._go_on(trial)

    def _go_on(self, trial: Trial) -> None:
        progress = self.work[trial]
        if trial.recorded:
            report = trial.recorded.popleft()
            is_last = not trial.recorded and trial.recorded_end == "finished"
            progress.is_replayed = not is_last
            self.engine.report(trial, report, is_last)
        elif trial.recorded_end:
            self._leave(trial, "stop")
        else:
            progress.is_replayed = False
            self._run(trial)

    def _leave(self, trial: Trial, decision: Decision) -> None:
        """Leave a trial where its records leave it."""
        self.work[trial].is_replayed = False
        if decision == "pause":
            self.engine.release(trial)
        elif trial.recorded_end == "infeasible":
            self.engine.fail(trial, "infeasible")
        else:
            self.engine.stop(trial)
            if trial.recorded_end is None:
                self._close(trial, self._stop_reason(trial))

    def _open(self, trial: Trial) -> TrialProgress:
        config = self.config.trial(trial.point, trial.repeat, trial.name)
        folder = self._folder(trial)
        progress = TrialProgress(config, folder, began_s=self._now())
        earlier = folder.read_json(RESULT) or {}
        progress.seconds = earlier.get("seconds") or 0.0
        if trial.recorded_end:
            progress.outcome = trial.recorded_end
            progress.began_s, progress.ended_s = earlier.get("began_s"), earlier.get("ended_s")
        progress.node, progress.reason = earlier.get("node"), earlier.get("reason")
        progress.error = earlier.get("error")
        progress.weigh(earlier)
        progress.curve = [(report.step, report.value) for report in self.past.reports(folder)]
        self.work[trial] = progress
        return progress

    def _run(self, trial: Trial) -> None:
        progress = self.work[trial]
        try:
            spec_ = self._order(progress)
        except ShoalError as error:
            self._refuse(trial, error)
            return
        progress.error = progress.reason = None
        progress.folder.create()
        progress.folder.create_identity(
            name=trial.name, experiment=self.config.experiment_name, point=trial.point, repeat=trial.repeat
        )
        progress.folder.update_json(IDENTITY, status="RUNNING", reason=None)
        progress.folder.delete(RESULT)
        if not progress.folder.exists(CONFIG):
            progress.folder.write(CONFIG, to_yaml(progress.config).encode())
        self.pool.begin(trial, spec_)

    def _order(self, progress: TrialProgress) -> TrialSpec:
        config = progress.config
        plan, dataset_info, shard_refs = self.dataset_cache.get(config)
        preprocessing = preprocessing_spec(config.data, config.task, config.seed, plan.source)
        spec = WorkerSpec(config, progress.folder.uri, self.attempt, dataset_info, preprocessing)
        waits_for_decision = self.config.tune.scheduler != "none"
        return TrialSpec(spec, shard_refs, waits_for_decision, self._use_gpu, self.config.is_distributed)

    def _refuse(self, trial: Trial, error: ShoalError) -> None:
        """A point that cannot be trained at all: it is told of without having been a run."""
        if trial not in self.work:
            self.work[trial] = TrialProgress(self.plan.base.config, self._folder(trial), began_s=self._now())
        self.work[trial].error = {"type": type(error).__name__, "message": str(error), "where": ""}
        self.engine.fail(trial, "infeasible")
        self._close(trial, str(error))

    def _handle(self, trial: Trial, event: Event) -> None:
        progress = self.work[trial]
        match event:
            case TrialStarted(node):
                progress.node = node
            case TrialReport(step, metrics):
                self._handle_report(trial, progress, step, metrics[self.config.tune.metric])
            case TrialEnded():
                progress.seconds += event.seconds
                self._handle_end(trial, progress, event)
            case ActorLost(reason, was_out_of_memory):
                self._handle_loss(trial, progress, reason, was_out_of_memory)

    def _handle_report(self, trial: Trial, progress: TrialProgress, step: int, value: float) -> None:
        if not progress.curve or step > progress.curve[-1][0]:
            progress.curve.append((step, value))
        if self.config.tune.scheduler == "none":
            return
        if step in progress.decisions:  # measured again after a loss
            self.pool.answer(trial, progress.decisions[step])
        else:
            self.engine.report(trial, self.past.report(progress.config, step, value))

    def _handle_end(self, trial: Trial, progress: TrialProgress, event: TrialEnded) -> None:
        match event.how:
            case "finished":
                at = event.outcome["progress"]
                value = at["metrics"][self.config.tune.metric]
                if not progress.curve or at["step"] > progress.curve[-1][0]:
                    progress.curve.append((at["step"], value))
                self._close(trial, None, "finished")
                self.engine.report(trial, self.past.report(progress.config, at["step"], value), is_last=True)
            case "stop":
                self.engine.stop(trial)
                self._close(trial, self._stop_reason(trial))
            case "pause":
                self.engine.release(trial)
            case "interrupted":
                self.engine.fail(trial, "killed")
                self._close(trial, "the time budget ended" if self._is_out_of_time else "interrupted")
            case how:
                assert event.error is not None
                progress.error = event.error
                self.engine.fail(trial, how)
                self._close(trial, f"{event.error['type']}: {event.error['message']}")
                self._check_alike()

    def _handle_loss(
        self, trial: Trial, progress: TrialProgress, reason: str, was_out_of_memory: bool
    ) -> None:
        progress.losses += 1
        most = self.config.scale.max_failures
        if not was_out_of_memory and progress.losses <= most:
            logger.warning(
                "trial %s lost its process (%s); it goes on from its last checkpoint, %d of %d",
                trial.name, reason, progress.losses, most,
            )  # fmt: skip
            self.engine.release(trial)
            return
        kind = "OutOfMemoryError" if was_out_of_memory else "WorkerLost"
        times = "" if was_out_of_memory else f"its process was lost {progress.losses} times: "
        progress.error = {"type": kind, "message": f"{times}{reason}", "where": "", "host": progress.node}
        progress.folder.write_json(ERROR, progress.error)
        self.engine.fail(trial, "infeasible" if was_out_of_memory else "failed")
        self._close(trial, f"{kind}: {times}{reason}")

    def _close_given_up(self) -> None:
        """Close the paused trials that the scheduler gave up, once no process writes their checkpoints any more."""
        for trial, progress in self.work.items():
            if trial.has_ended and progress.outcome is None and not self.pool.holds(trial):
                self._close(trial, self._stop_reason(trial))

    def _close(self, trial: Trial, reason: str | None, outcome: str | None = None) -> None:
        """Leave a trial's result in its folder, and free what it does not need any more."""
        progress, outcome = self.work[trial], outcome or trial.outcome
        assert outcome is not None
        progress.ended_s, progress.outcome, progress.reason = self._now(), outcome, reason
        folder, status = progress.folder, STATUS.get(outcome, "FAILED")
        if folder.exists(IDENTITY):
            result = progress.result(trial, self.config.tune.metric, outcome, status)
            progress.weigh(result)
            folder.write_json(RESULT, result)
            folder.update_json(IDENTITY, status=status, reason=reason, end_ms=int(time.time() * 1000))
        self._note_best()
        self._retain()

    def _note_best(self) -> None:
        """Note in the sweep's own run how the best value moves, by the number of trials that have ended."""
        rows = self.rows()
        ended = sum(progress.outcome is not None for progress in self.work.values())
        name = f"best/{self.config.run_sweep.metric.replace('/', '_')}"
        won = best(rows, self.config.mode)
        found = {name: won.metric} if won and won.metric is not None else {}
        self.journal.log(ended, {"trials/ended": float(ended)} | found)
        self.journal.flush()

    def _retain(self) -> None:
        """Free the checkpoints of the trials that cannot be among the best any more."""
        run_sweep = self.config.tune
        lost = losers(self.rows(), self.best_first(), run_sweep.repeat, run_sweep.keep)
        for trial, progress in self.work.items():
            if trial.number in lost and not progress.is_freed:
                progress.folder.delete(CHECKPOINTS)
                progress.is_freed = True

    def best_first(self) -> list[TrialRow]:
        """Rank the trials; of a point with several seeds, by their mean first."""
        rows = self.rows()
        if self.config.tune.repeat == 1:
            return ranked(rows, self.config.mode)
        place = {point.point: number for number, point in enumerate(points(rows, self.config.mode))}
        return sorted(ranked(rows, self.config.mode), key=lambda row: place.get(row.point, len(place)))

    # -- stopping ------------------------------------------------------------------------------------------------

    def _ended(self) -> int:
        return sum(trial.has_ended and trial.outcome != "killed" for trial in self.engine.trials)

    def _check_for_stop(self) -> None:
        if self.folder.exists(STOP):
            self.mark_killed()
            self._interrupt_trials()
            raise Interrupted(
                f"interrupted after {self._ended()} of {self.plan.total} trials; the same command resumes there"
            )

    def _check_budget(self) -> None:
        budget = self.config.tune.time_budget_s
        if budget is None or self._is_out_of_time or time.time() - self.started < budget:
            return
        logger.warning(
            "tune.time_budget_s=%g is over: running trials write a checkpoint; the same command goes on",
            budget,
        )
        self._is_out_of_time = True
        self._interrupt_trials()
        self.engine.close("killed")
        for trial, progress in self.work.items():
            if trial.outcome == "killed" and progress.ended_s is None:
                self._close(trial, "the time budget ended")

    def _interrupt_trials(self) -> None:
        """Have every running trial write a checkpoint and end."""
        running = {trial for trial in self.work if trial.is_busy and not self.work[trial].is_replayed}
        for trial in running:
            request_stop(self.work[trial].folder, "SIGTERM")
            self.pool.answer(trial, "pause")  # one that waits for a verdict is at an evaluation already
        until = time.monotonic() + STOP_PATIENCE_S
        while running and time.monotonic() < until:
            for trial, event in self.pool.wait(WAIT_S):
                if isinstance(event, TrialEnded) and event.how == "pause":
                    event = replace(event, how="interrupted")
                if isinstance(event, TrialEnded | ActorLost):
                    running.discard(trial)
                if not isinstance(event, ActorLost):
                    self._handle(trial, event)

    def _check_alike(self) -> None:
        """End a sweep of which every trial so far failed in the same way.

        Raises:
            TrainingError: with that error.
        """
        ended = [trial for trial in self.engine.trials if trial.has_ended and trial in self.work]
        errors = [self.work[trial].error for trial in ended if trial.outcome == "failed"]
        enough = min(ALIKE, self.plan.total)
        if len(errors) < enough or len(errors) < len(ended):
            return
        first = errors[0]
        if first and all(
            error and (error["type"], error["where"]) == (first["type"], first["where"]) for error in errors
        ):
            self._interrupt_trials()
            error = TrainingError(
                f"all of the first {len(errors)} trials failed alike: {first['type']}: {first['message']} "
                f"({first['where']}): mend it; the same command goes on. Traceback: "
                f"{self.work[ended[0]].folder.uri}/{ERROR}"
            )
            error.exit_code = first.get("exit_code", 1)
            raise error

    def _why_nothing_came(self, rows: list[TrialRow]) -> str:
        if self._is_out_of_time:
            return "the time budget ended before the first trial did: raise it; the same command goes on"
        reasons = sorted({row.reason or row.status for row in rows})
        return f"none of {len(rows)} trials came to a result ({'; '.join(reasons[:3])}): narrow the space"

    # -- what is known -------------------------------------------------------------------------------------------

    def _stop_reason(self, trial: Trial) -> str:
        value = f"{trial.value:.6g}" if trial.value is not None else "nothing"
        run_sweep = self.config.tune
        return f"stopped by {run_sweep.scheduler} at evaluation {trial.iteration} with {run_sweep.metric} {value}"

    def _free_slots(self) -> int:
        replayed = sum(trial.is_busy and progress.is_replayed for trial, progress in self.work.items())
        return self.pool.free - replayed

    def _folder(self, trial: Trial) -> RunFolder:
        return self.folder.inner(f"{TRIALS}/{trial.name}")

    def _now(self) -> float:
        """Seconds since the sweep began, over all attempts."""
        return time.time() - float(self.folder.identity()["start_ms"]) / 1000

    def _tell(self, note: str = "") -> None:
        rows = self.rows()
        running = sum(row.status == "running" for row in rows)
        self.listen(
            SweepStatus(
                rows,
                best(rows, self.config.mode),
                self.plan.total,
                running,
                self.config.tune.metric,
                time.time() - self.started,
                note,
            )
        )

    # -- the end -------------------------------------------------------------------------------------------------

    def _package_best(self, trial: Trial) -> None:
        """Save, verify and register the best trial's model, as `jobs/train.py` does with its own."""
        progress = self.work[trial]
        outcome = progress.folder.read_json(OUTCOME)
        plan, dataset_info, _ = self.dataset_cache.get(progress.config)
        config = progress.config
        preprocessing = preprocessing_spec(config.data, config.task, config.seed, plan.source)
        self.is_verified = package_and_verify(
            progress.folder, config, plan.source, preprocessing, dataset_info, outcome
        )
        name = self.config.track.registered_model_name
        progress.folder.update_json(IDENTITY, registered_model_name=name)

    def _disk_bytes(self) -> int | None:
        local = self.folder.local()
        return sum(path.stat().st_size for path in local.rglob("*") if path.is_file()) if local else None

    def _best_result(self, won: TrialRow) -> dict[str, Any]:
        folder = self._folder(self.engine.trials[won.number])
        result = folder.read_json(RESULT) or {}
        return {
            "trial": won.name,
            "params": won.params,
            "value": won.metric,
            "metrics": result.get("metrics", {}),
            "model": result.get("model"),
            "run_folder": folder.uri,
            "mlflow_run_id": folder.identity().get("run_id"),
            "is_verified": self.is_verified,
        }
