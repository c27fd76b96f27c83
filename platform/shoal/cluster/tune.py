"""The driver of a sweep: carries out what the engine decides, keeps the records, and hands over the best model.

A trial is a run folder below the sweep's, with a journal and checkpoints of its own, and calls the same `work` as
`jobs/train.py`. All that a later attempt needs is in these folders: the engine looks at what they hold before it
runs anything.
"""

import contextlib
import json
import logging
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from shoal.checkpoint import CheckpointStore
from shoal.cluster import session
from shoal.cluster.attempt import Attempt, request_stop
from shoal.cluster.config import RunConfig
from shoal.cluster.deal import Hands, deal, spare_cpus
from shoal.cluster.deliver import deliver
from shoal.cluster.facts import facts_of
from shoal.cluster.plan import Plan, check_data, measure_model
from shoal.cluster.pool import Event, Lost, Pool
from shoal.cluster.schedulers import Fifo, make_scheduler
from shoal.cluster.sweep_plan import SweepPlan, evaluations, iteration_at
from shoal.cluster.trial import Began, Ended, Order, Reported
from shoal.cluster.worker import OUTCOME, Assignment
from shoal.config import to_yaml
from shoal.data.opening import recipe_of
from shoal.data.prepare import Prepared, check_batch
from shoal.errors import Interrupted, ShoalError, TrainingError, UserError
from shoal.models.flops import training_flops
from shoal.runfolder import (
    CHECKPOINTS,
    CONFIG,
    ERROR,
    FACTS,
    IDENTITY,
    RESULT,
    STOP,
    TRIALS,
    RunFolder,
)
from shoal.sweep.engine import LAG, Clone, Engine, Planned, Report, Trial, Verdict
from shoal.sweep.report import Findings, write_report
from shoal.sweep.transfer import busy_seconds
from shoal.sweep.trials import TrialRow, best, points, ranked
from shoal.track.journal import Journal, JournalReader
from shoal.track.tracker import TrackerProcess
from shoal.train import total_steps

logger = logging.getLogger(__name__)

WAIT_S = 0.25
STOP_PATIENCE_S = 30.0
SETTLE_S = 10.0
# So many trials that fail in the same way, with none that did not, are the user's error and not the trials'.
ALIKE = 3
LINEAGE = "lineage.json"
STATUS = {"finished": "FINISHED", "stopped": "FINISHED", "killed": "KILLED"}  # MLflow's words; else FAILED


@dataclass
class Progress:
    """What the driver knows of one trial besides the engine."""

    config: RunConfig
    folder: RunFolder
    curve: list[tuple[int, float]] = field(default_factory=list)
    began_s: float | None = None
    ended_s: float | None = None
    seconds: float = 0.0
    losses: int = 0
    node: str | None = None
    outcome: str | None = None
    reason: str | None = None
    error: dict[str, Any] | None = None
    is_replayed: bool = False  # its reports come from an earlier attempt's journal
    is_freed: bool = False
    parameters: int | None = None
    flops: int | None = None
    training_s: float | None = None
    verdicts: dict[int, Verdict] = field(default_factory=dict)  # by the step they were given for

    def weigh(self, result: dict[str, Any]) -> None:
        """Take over from a trial's result how large its model is and what training it took."""
        model, samples = result.get("model"), result.get("samples_seen")
        if model:
            self.parameters = model["parameters"]
            self.flops = training_flops(model["flops_per_sample"], samples) if samples else None
            self.training_s = result.get("training_seconds")


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


def tune(plan: SweepPlan, folder: RunFolder, listen: Listener = lambda status: None) -> dict[str, Any]:
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


class _Sweep(Attempt):
    """One attempt at a sweep."""

    config: Any  # a SweepConfig

    def __init__(self, plan: SweepPlan, folder: RunFolder, listen: Listener) -> None:
        super().__init__(plan.config, folder, is_sweep=True)
        self.plan, self.listen = plan, listen
        self.work: dict[Trial, Progress] = {}
        self.engine = Engine(Planned([]), Fifo())
        self.is_verified = False
        self.findings: Findings | None = None
        self._pantry: dict[str, tuple[Plan, Prepared, Hands]] = {}
        self._is_out_of_time = False

    tracker: TrackerProcess

    def make_tracker(self) -> TrackerProcess:
        """Track in a process of its own: hundreds of trials' records must not keep the driver from their reports."""
        return TrackerProcess(self.folder)

    def run(self) -> None:
        """Train all trials; what is left when the time budget ends is left for the same command later."""
        self.folder.delete(STOP)
        config, base = self.config, self.plan.base
        if base.prepared is not None:
            self._state_facts(base.prepared)  # MLflow is imported, and its tables made, while Ray starts
        use_gpu = session.connect(config.scale, spare_cpus(base))
        slots = self.plan.slots(session.resources(), spare_cpus(base), use_gpu)
        self._use_gpu = use_gpu
        self.pool: Pool[Trial] = Pool(slots, self.plan.actor_resources(use_gpu))
        prepared, hands = deal(base, config.scale.data_size)
        self._pantry[self._shelf(base.config)] = (base, prepared, hands)
        if base.prepared is None:
            self._state_facts(prepared)
        self.journal = Journal(self.folder, self.attempt)
        scheduler = make_scheduler(
            config.tune, config.domains, config.mode, self._most_evaluations(), config.seed
        )
        lag = max(LAG, slots)
        self.engine = Engine(self.plan.search(), scheduler, config.tune.repeat, lag, self._recall)
        try:
            self._loop()
        finally:
            self.pool.close()
            self.journal.sync()

    def finish(self) -> dict[str, Any]:
        """Rank, hand over the best model, draw the report."""
        rows, order = self.rows(), self.best_first()
        if not order:
            raise TrainingError(self._why_nothing_came(rows))
        self.tracker.settle(SETTLE_S)
        self._tell("verifying the best model")
        self._hand_over(self.engine.trials[order[0].number])
        self._tell("drawing the report")
        name, config = self.folder.identity()["name"], self.config
        self.findings = write_report(self.folder, rows, name, config.tune.metric, config.mode, self._now())
        self._update_facts(order[0])
        return self.write_result({"status": "FINISHED"})

    def rows(self) -> list[TrialRow]:
        """Return what is known of each trial that has begun, in their order."""
        return [self._row(trial) for trial in self.engine.trials if trial in self.work]

    def write_result(self, ending: dict[str, Any]) -> dict[str, Any]:
        rows, order = self.rows(), self.best_first()
        counts = {
            status: sum(row.status == status for row in rows) for status in {row.status for row in rows}
        }
        result = {
            **ending,
            **self.who(),
            "metric": self.config.tune.metric,
            "mode": self.config.mode,
            "best": self._best_result(order[0]) if order else None,
            "trials": {"planned": self.plan.total, "ended": self._ended(), **counts},
            "worker_hours": sum(row.seconds for row in rows) * self.config.scale.num_workers / 3600,
            "total_seconds": time.time() - self.started,
            "records_complete": self.tracker.level_s,
            "is_out_of_time": self._is_out_of_time,
            "rows": [asdict(row) for row in [*order, *(row for row in rows if row not in order)]],
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
            self._tell()
            if self.engine.has_ended:
                return
            self._check_for_stop()
            self._check_budget()
            for trial, event in self.pool.wait(0.0 if has_moved else WAIT_S):
                has_moved = True
                self._hear(trial, event)
            moved_s = time.monotonic() if has_moved else moved_s
            self.engine.is_impatient = time.monotonic() - moved_s > 60.0

    def _start_what_can(self) -> bool:
        has_started = False
        while self._free_slots() > 0 and (trial := self.engine.choose()) is not None:
            self._start(trial)
            has_started = True
        return has_started

    def _give_verdicts(self) -> bool:
        verdicts = self.engine.verdicts()
        for trial, verdict in verdicts:
            self.work[trial].verdicts[trial.reports[-1].step] = verdict
            if not self.work[trial].is_replayed:
                self.pool.answer(trial, verdict)
            elif verdict == "continue":
                self._go_on(trial)
            else:
                self._leave(trial, verdict)
        return bool(verdicts)

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
        passed: dict[Verdict, Verdict] = {"pause": "continue"}
        progress.verdicts = {step: passed.get(one, one) for step, one in progress.verdicts.items()}
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

    def _leave(self, trial: Trial, verdict: Verdict) -> None:
        """Leave a trial where its records leave it."""
        self.work[trial].is_replayed = False
        if verdict == "pause":
            self.engine.release(trial)
        elif trial.recorded_end == "infeasible":
            self.engine.fail(trial, "infeasible")
        else:
            self.engine.stop(trial)
            if trial.recorded_end is None:
                self._close(trial, self._stop_reason(trial))

    def _open(self, trial: Trial) -> Progress:
        config = self.config.trial(trial.point, trial.repeat, trial.name)
        folder = self._folder(trial)
        progress = Progress(config, folder, began_s=self._now())
        earlier = folder.read_json(RESULT) or {}
        progress.seconds = earlier.get("seconds") or 0.0
        if trial.recorded_end:
            progress.outcome = trial.recorded_end
            progress.began_s, progress.ended_s = earlier.get("began_s"), earlier.get("ended_s")
        progress.node, progress.reason = earlier.get("node"), earlier.get("reason")
        progress.error = earlier.get("error")
        progress.weigh(earlier)
        progress.curve = [(report.step, report.value) for report in self._recorded(folder, math.inf)]
        self.work[trial] = progress
        return progress

    def _run(self, trial: Trial) -> None:
        progress = self.work[trial]
        try:
            order = self._order(progress)
        except ShoalError as error:
            self._refuse(trial, error)
            return
        progress.error = progress.reason = None
        progress.folder.create()
        progress.folder.mint(
            name=trial.name, experiment=self.config.experiment_name, point=trial.point, repeat=trial.repeat
        )
        progress.folder.update_json(IDENTITY, status="RUNNING", reason=None)
        progress.folder.delete(RESULT)
        if not progress.folder.exists(CONFIG):
            progress.folder.write(CONFIG, to_yaml(progress.config).encode())
        self.pool.begin(trial, order)

    def _order(self, progress: Progress) -> Order:
        config = progress.config
        plan, prepared, hands = self._dealt(config)
        recipe = recipe_of(config.data, config.task, config.seed, plan.source)
        told = Assignment(config, progress.folder.uri, self.attempt, prepared, recipe)
        judges = self.config.tune.scheduler != "none"
        return Order(told, hands, judges, self._use_gpu, self.config.is_distributed)

    def _refuse(self, trial: Trial, error: ShoalError) -> None:
        """A point that cannot be trained at all: it is told of without having been a run."""
        if trial not in self.work:
            self.work[trial] = Progress(self.plan.base.config, self._folder(trial), began_s=self._now())
        self.work[trial].error = {"type": type(error).__name__, "message": str(error), "where": ""}
        self.engine.fail(trial, "infeasible")
        self._close(trial, str(error))

    def _hear(self, trial: Trial, event: Event) -> None:
        progress = self.work[trial]
        match event:
            case Began(node):
                progress.node = node
            case Reported(step, metrics):
                self._hear_report(trial, progress, step, metrics[self.config.tune.metric])
            case Ended():
                progress.seconds += event.seconds
                self._hear_end(trial, progress, event)
            case Lost(reason, was_out_of_memory):
                self._hear_loss(trial, progress, reason, was_out_of_memory)

    def _hear_report(self, trial: Trial, progress: Progress, step: int, value: float) -> None:
        if not progress.curve or step > progress.curve[-1][0]:
            progress.curve.append((step, value))
        if self.config.tune.scheduler == "none":
            return
        if step in progress.verdicts:  # measured again after a loss
            self.pool.answer(trial, progress.verdicts[step])
        else:
            self.engine.report(trial, self._report(progress.config, step, value))

    def _hear_end(self, trial: Trial, progress: Progress, event: Ended) -> None:
        match event.how:
            case "finished":
                at = event.outcome["progress"]
                value = at["metrics"][self.config.tune.metric]
                if not progress.curve or at["step"] > progress.curve[-1][0]:
                    progress.curve.append((at["step"], value))
                self._close(trial, None, "finished")
                self.engine.report(trial, self._report(progress.config, at["step"], value), is_last=True)
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

    def _hear_loss(self, trial: Trial, progress: Progress, reason: str, was_out_of_memory: bool) -> None:
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

    def _close(self, trial: Trial, reason: str | None, outcome: str | None = None) -> None:
        """Leave a trial's result in its folder, and free what it does not need any more."""
        progress, outcome = self.work[trial], outcome or trial.outcome
        assert outcome is not None
        progress.ended_s, progress.outcome, progress.reason = self._now(), outcome, reason
        folder, status = progress.folder, STATUS.get(outcome, "FAILED")
        if folder.exists(IDENTITY):
            result = self._trial_result(trial, progress, outcome, status)
            progress.weigh(result)
            folder.write_json(RESULT, result)
            folder.update_json(IDENTITY, status=status, reason=reason, end_ms=int(time.time() * 1000))
        self._note_best()
        self._retain()

    def _trial_result(self, trial: Trial, progress: Progress, outcome: str, status: str) -> dict[str, Any]:
        done = progress.folder.read_json(OUTCOME) or {}
        return {
            "status": status,
            "outcome": outcome,
            "reason": progress.reason,
            "run_name": trial.name,
            "run_folder": progress.folder.uri,
            "params": trial.point,
            "repeat": trial.repeat,
            "metric": self.config.tune.metric,
            "value": progress.curve[-1][1] if progress.curve else None,
            "metrics": done.get("progress", {}).get("metrics", {}) | done.get("test_metrics", {}),
            "steps": done.get("progress", {}).get("step"),
            "samples_seen": done.get("progress", {}).get("samples"),
            "model": (progress.folder.read_json(FACTS) or {}).get("model"),
            "seconds": progress.seconds,
            "training_seconds": busy_seconds(done) if done else None,
            "began_s": progress.began_s,
            "ended_s": progress.ended_s,
            "node": progress.node,
            "error": progress.error,
        }

    def _note_best(self) -> None:
        """Note in the sweep's own run how the best value moves, by the number of trials that have ended."""
        rows = self.rows()
        ended = sum(progress.outcome is not None for progress in self.work.values())
        name = f"best/{self.config.tune.metric.replace('/', '_')}"
        won = best(rows, self.config.mode)
        found = {name: won.metric} if won and won.metric is not None else {}
        self.journal.points(ended, {"trials/ended": float(ended)} | found)
        self.journal.flush()

    def _retain(self) -> None:
        """Free the checkpoints of all ended trials but the best."""
        order = self.best_first()
        kept = {row.number for row in order[: self.config.tune.keep]}
        for trial, progress in self.work.items():
            has_ended = progress.outcome not in (None, "killed")
            if has_ended and trial.number not in kept and not progress.is_freed:
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
                if isinstance(event, Ended) and event.how == "pause":
                    event = replace(event, how="interrupted")
                if isinstance(event, Ended | Lost):
                    running.discard(trial)
                if not isinstance(event, Lost):
                    self._hear(trial, event)

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

    # -- population based training -------------------------------------------------------------------------------

    def _carry_out_clones(self) -> bool:
        clones = self.engine.take_clones()
        for clone in clones:
            self._clone(clone)
        return bool(clones)

    def _clone(self, clone: Clone) -> None:
        """Put the source's checkpoint into the trial's folder, once, and move the trial to its new point."""
        progress, source = self.work[clone.trial], self.work[clone.source]
        lineage = progress.folder.read_json(LINEAGE) or []
        name = f"step-{clone.report.step:06d}"
        if not any(entry["iteration"] == clone.report.iteration for entry in lineage):
            progress.folder.copy_folder(source.folder, f"{CHECKPOINTS}/{name}")
            entry = {
                "iteration": clone.report.iteration,
                "step": clone.report.step,
                "from": clone.source.name,
            }
            progress.folder.write_json(LINEAGE, [*lineage, entry | {"point": clone.point}])
            self._tag_clone(progress, clone)
        clone.trial.point = clone.point
        progress.config = self.config.trial(clone.point, clone.trial.repeat, clone.trial.name).replace(
            {"seed": progress.config.seed}
        )

    def _tag_clone(self, progress: Progress, clone: Clone) -> None:
        """MLflow's params do not change: what a trial goes on with is a tag."""
        facts = progress.folder.read_json(FACTS)
        if facts:
            changed = ", ".join(f"{key}={value:.6g}" if isinstance(value, float) else f"{key}={value}"
                                for key, value in clone.point.items())  # fmt: skip
            facts["tags"][f"shoal.pbt.{clone.report.iteration:03d}"] = f"from {clone.source.name}: {changed}"
            progress.folder.write_json(FACTS, facts)

    # -- what is known -------------------------------------------------------------------------------------------

    def _recall(self, trial: Trial) -> None:
        """Fill a trial with what an earlier attempt left of it."""
        folder = self._folder(trial)
        identity = folder.read_json(IDENTITY)
        if identity is None:
            return
        trial.point = identity.get("point", trial.point)
        outcome = (folder.read_json(RESULT) or {}).get("outcome")
        if outcome in ("finished", "stopped", "infeasible"):
            trial.recorded_end = outcome
            reports = self._recorded(folder, math.inf)
        else:
            name, _ = CheckpointStore(folder).latest()
            # At its last evaluation a trial reports its end itself, once it is taken up from there.
            config = self.config.trial(trial.point)
            last = total_steps(config.train, self._lanes_steps(config))
            reports = self._recorded(folder, min(int(name.removeprefix("step-")), last - 1) if name else 0)
        judges = self.config.tune.scheduler != "none"
        trial.recorded = deque(reports if judges else reports[-1:] if outcome == "finished" else [])

    def _recorded(self, folder: RunFolder, until_step: float) -> list[Report]:
        metric = self.config.tune.metric
        found = [
            point
            for point in JournalReader(folder).read()
            if point.key == metric and point.step <= until_step
        ]
        config = self.config.trial((folder.read_json(IDENTITY) or {}).get("point", {})) if found else None
        return [self._report(config, point.step, point.value) for point in found] if config else []

    def _report(self, config: RunConfig, step: int, value: float) -> Report:
        return Report(iteration_at(config, step, self._lanes_steps(config)), step, value)

    def _row(self, trial: Trial) -> TrialRow:
        progress = self.work[trial]
        status = progress.outcome or {"RUNNING": "running", "PAUSED": "paused"}.get(trial.status, "pending")
        error = progress.error
        return TrialRow(
            number=trial.number,
            name=trial.name,
            status=status,
            params=trial.point,
            metric=progress.curve[-1][1] if progress.curve else None,
            steps=progress.curve[-1][0] if progress.curve else 0,
            seconds=progress.seconds,
            started_s=progress.began_s,
            ended_s=progress.ended_s,
            curve=tuple(progress.curve),
            reason=progress.reason,
            node=progress.node,
            error=f"{error['type']}: {error['message'].splitlines()[0]}" if error else None,
            log=f"{progress.folder.uri}/{ERROR}" if error else None,
            repeat=trial.repeat,
            point=trial.point_number,
            parameters=progress.parameters,
            flops=progress.flops,
            training_s=progress.training_s,
        )

    def _stop_reason(self, trial: Trial) -> str:
        value = f"{trial.value:.6g}" if trial.value is not None else "nothing"
        tune = self.config.tune
        return f"stopped by {tune.scheduler} at evaluation {trial.iteration} with {tune.metric} {value}"

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

    # -- data ----------------------------------------------------------------------------------------------------

    def _dealt(self, config: RunConfig) -> tuple[Plan, Prepared, Hands]:
        """Return the data a config asks for, read and transformed once for all trials that ask for the same.

        Raises:
            DataError: it cannot be trained on.
        """
        shelf = self._shelf(config)
        if shelf not in self._pantry:
            plan = check_data(config)
            self._pantry[shelf] = (plan, *deal(plan, config.scale.data_size))
        plan, prepared, hands = self._pantry[shelf]
        check_batch(config.data, prepared.rows)
        return plan, prepared, hands

    def _shelf(self, config: RunConfig) -> str:
        data = config.data.model_dump()
        # One worker holds all rows, whatever the batch; several are dealt the lanes of a batch.
        if config.scale.data_size == 1:
            data.pop("global_batch_size")
        return json.dumps([data, config.task, config.scale.data_size], sort_keys=True)

    def _lanes_steps(self, config: RunConfig) -> int:
        plan, prepared, _ = self._dealt(config)
        return prepared.lanes(recipe_of(config.data, config.task, config.seed, plan.source)).steps

    def _most_evaluations(self) -> int:
        """Return how often the longest trial is evaluated."""
        found = [1]
        for config in self.plan.corner_configs:
            with contextlib.suppress(UserError):  # a corner that cannot be trained
                found.append(evaluations(config, self._lanes_steps(config)))
        return max(found)

    # -- the end -------------------------------------------------------------------------------------------------

    def _hand_over(self, trial: Trial) -> None:
        """Save, verify and register the best trial's model, as `jobs/train.py` does with its own."""
        progress = self.work[trial]
        outcome = progress.folder.read_json(OUTCOME)
        plan, prepared, _ = self._dealt(progress.config)
        config = progress.config
        recipe = recipe_of(config.data, config.task, config.seed, plan.source)
        self.is_verified = deliver(progress.folder, config, plan.source, recipe, prepared, outcome)
        name = self.config.track.registered_model_name
        progress.folder.update_json(IDENTITY, registered_model_name=name)

    def _state_facts(self, prepared: Prepared) -> None:
        """Write down what MLflow is to know of the sweep, and let it be told."""
        base = self.plan.base
        assert base.size is not None or base.prepared is None
        size = base.size or measure_model(base.config, prepared)
        facts = facts_of(base.config, prepared, size)
        tune = self.config.tune
        swept = dict(self.config.space) | {
            f"tune.{key}": getattr(tune, key) for key in ("metric", "scheduler", "search", "repeat")
        }
        facts["params"] = facts["params"] | swept
        del facts["params"]["model.parameters"]
        facts["tags"] |= {"shoal.trials": self.plan.total, "shoal.sweep": "true"}
        self.folder.write_json(FACTS, facts)
        self.tracker.start()

    def _update_facts(self, won: TrialRow) -> None:
        """Tell MLflow which trial is best; a later attempt may find a better one, so it is tags that say it."""
        assert self.findings is not None
        facts = self.folder.read_json(FACTS)
        folder = self._folder(self.engine.trials[won.number])
        facts["tags"] |= {f"best.{key}": value for key, value in won.params.items()}
        facts["tags"] |= {
            "best.trial": won.name,
            f"best.{self.config.tune.metric.replace('/', '_')}": won.metric,
            "best.run_id": folder.identity().get("run_id"),
            "mlflow.note.content": self.findings.note,
        }
        self.folder.write_json(FACTS, facts)

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
