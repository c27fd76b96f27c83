"""One run folder to MLflow: its points, params, tags, inputs and artifacts, as often as one likes.

A second time changes nothing: the run is found by its key, a journal position says which points MLflow has, and MLflow
keeps a point that it receives twice once. Independent of training and of sweeps (`shoal.tracking.sweep_sync`).
"""

import contextlib
import logging
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from shoal.registry.client import connect
from shoal.storage.records import FailureRecord, Identity, JournalPosition, Metadata, Result, Status
from shoal.storage.run_folder import CONFIG, EXPORTS, JOURNAL, MODEL, MODEL_CARD, SAMPLE, SHOWN, RunFolder
from shoal.tracking import cockpit
from shoal.tracking.entities import dataset_input, experiment_id, only_one, reason_text
from shoal.tracking.journal import JournalReader, MetricPoint

KEY_TAG, LEASE_TAG, REASON_TAG = "shoal.run", "shoal.lease", "shoal.reason"
PARENT_TAG = "mlflow.parentRunId"
BATCH = 1000  # MLflow's own limit for one log_batch
# What MLflow says of a run that was deleted; and, with the last one, of much else, so that it counts a few times.
LOST, MOST_LOST = ("RESOURCE_DOES_NOT_EXIST", "INVALID_STATE", "INVALID_PARAMETER_VALUE"), 3

SAVE_EVERY_S = {True: 0.0, False: 60.0}  # the journal's position, by whether the run folder is on a disk

Step = Callable[[], None]

logger = logging.getLogger(__name__)


class Ending(NamedTuple):
    """How an attempt ended, from its driver: the folder does not say so where it cannot be written."""

    status: Status
    reason: str | None
    end_ms: int


class RunLostError(Exception):
    """MLflow does not have a run any more."""

    error_code = LOST[0]


class RunSync:
    """One run folder's projection into MLflow. Every method may raise whatever MLflow raises.

    What `open` and `close` do is a list of steps. A step that fails is the first of the next call: what was done is not
    done again, and each step may be done twice. Nothing is sent once a later attempt than that of the folder object
    exists: LeaseLostError.
    """

    def __init__(self, folder: RunFolder, parent: "RunSync | None" = None) -> None:
        self._folder, self._parent = folder, parent
        self._identity, self._tracked = folder.identity(), folder.tracked()
        self._reader = JournalReader(folder, folder.load_or_new(JournalPosition, inside=JOURNAL))
        self._unsent: list[MetricPoint] = []
        self._is_position_saved, self._saved_s = True, 0.0
        self.ending: Ending | None = None
        self._client: Any = None
        self._run: Any = None  # as MLflow had it when it was found or created
        self._to_open, self._to_close = self._steps_to_open(), list[Step]()
        self._may_exist = self._tracked.run_id is not None  # whether a run of this key was created earlier
        self._times_lost = 0
        self._publication: Any = None  # of the model, while it lasts
        self._marked: tuple[Status, str] | None = None
        self.experiment_id: str | None = None
        self._tags: dict[str, str] = {}  # as MLflow has them
        self._is_closed, self._closing = False, threading.Lock()
        self._children: dict[str, Any] = {}  # MLflow's runs below this one, by their key
        self.calls = 0  # that succeeded, of this run and those below it

    @property
    def identity(self) -> Identity:
        return self._identity

    @property
    def run_id(self) -> str | None:
        return str(self._run.info.run_id) if self._run else self._tracked.run_id

    @property
    def client(self) -> Any:
        """MLflow's client, for one call at a time: a later attempt may begin between two."""
        self._folder.check_fence(at_once=False)
        if self._parent is not None:
            return self._parent.client
        if self._client is None:
            self._client = connect(str(self._identity.tracking_uri))
        return self._client

    @property
    def is_open(self) -> bool:
        """Whether MLflow has the run, with its params, tags, inputs and first artifacts."""
        return not self._to_open

    @property
    def exists(self) -> bool:
        """Whether MLflow has the run, as far as this session knows."""
        return self._run is not None

    def open(self) -> None:
        """Find or create the run, and give it all that `is_open` promises."""
        self._do(self._to_open)

    def forget_if_lost(self, error: Exception) -> None:
        """Open the run again from the start if an error says that MLflow does not have it any more."""
        if getattr(error, "error_code", None) not in LOST or self._times_lost == MOST_LOST:
            return
        self._times_lost += 1
        self._to_open, self._to_close = self._steps_to_open(), []
        if self._parent is not None:
            self._parent._children.pop(self._identity.key, None)

    def send_points(self) -> int:
        """Send the points written since the last call; return how many there were."""
        from mlflow.entities import Metric

        sent = 0
        # The next ones are read once these have arrived: an outage of MLflow leaves them in the journal.
        while self._unsent or (unsent := self._reader.read_some()):
            self._unsent = self._unsent or unsent
            batch = self._unsent[: BATCH // 2]
            shown = cockpit.shown_points(batch)
            metrics = [Metric(point.key, point.value, point.time_ms, point.step) for point in shown]
            self.client.log_batch(self.run_id, metrics=metrics)
            self._count_call()
            del self._unsent[: len(batch)]
            sent += len(batch)
        self._is_position_saved &= not sent
        is_due = time.monotonic() - self._saved_s > SAVE_EVERY_S[self._folder.is_local]
        if is_due and not self._is_position_saved:
            self._save_position()
        return sent

    def _save_position(self) -> None:
        """Record which points MLflow has; after a crash those since then are sent again, and kept once."""
        self._is_position_saved, self._saved_s = True, time.monotonic()
        with never_failing():
            self._folder.save(self._reader.position, inside=JOURNAL)

    def remember(self, **changes: Any) -> None:
        """Record what MLflow has; a full disk must not keep MLflow from learning of it."""
        self._tracked = self._tracked.replace(**changes)
        with never_failing():
            self._folder.update_tracked(**changes)

    def renew_lease(self) -> None:
        """Renew the lease in the run's tags, by which other processes see that its driver is alive.

        A run that another process closed, having taken its driver for dead, says RUNNING again.
        """
        if self._write_lease():
            self.reopen()

    def reopen(self) -> bool:
        """Let a run that another process closed say RUNNING again, without a reason; return whether it was closed."""
        with self._closing:
            if self._is_closed or (run := self.client.get_run(self.run_id)).info.status == "RUNNING":
                return False
            logger.warning("another process closed run %s in MLflow: RUNNING again", run.info.run_name)
            self.client.update_run(self.run_id, status="RUNNING")
            if REASON_TAG in run.data.tags:
                self.client.delete_tag(self.run_id, REASON_TAG)
            return True

    def _write_lease(self) -> bool:
        """Write the lease into the run's tags; return whether a process holds it."""
        if holder := self._folder.holder():
            self.client.set_tag(self.run_id, LEASE_TAG, holder.model_dump_json())
        return holder is not None

    def close(self) -> None:
        """Send what is left: points, tags, pictures, result, model, registration; then the final status."""
        self._to_close = self._to_close or self._steps_to_close()
        self._do(self._to_close)

    def close_run(self, status: Status, reason: str | None = None, end_ms: int | None = None) -> None:
        """Set the run's final status and the reason for it."""
        with self._closing:
            self._is_closed = True
            self._set_reason(reason)
            self.client.set_terminated(self.run_id, status, end_ms or int(time.time() * 1000))

    def mark(self, status: Status, reason: str) -> None:
        """Set the status now, ahead of `close`; a run that is opened later has it too."""
        self._marked = status, reason
        if self.exists:
            self.close_run(status, reason)

    def _steps_to_open(self) -> list[Step]:
        steps: list[Step] = [self._find_experiment, self._find_or_create, self._begin, self._describe]
        steps += [self._log_inputs, partial(self._upload, CONFIG)]
        if self._parent is None:
            steps += [self._describe_experiment, partial(self._upload, self._folder.path_of(Metadata))]
        return steps

    def _steps_to_close(self) -> list[Step]:
        names = [f"{where}/{name}" for where in SHOWN for name in self._folder.names(where)]
        names += [SAMPLE, FailureRecord.file]
        names += [] if self._parent else [f"{EXPORTS}/{name}" for name in self._folder.files(EXPORTS)]
        steps: list[Step] = [self._check, self._send_last_points, self._describe]
        steps += [partial(self._upload, name, name.rpartition("/")[0] or None) for name in names]
        steps += [] if self._parent else [self._complete_result, partial(self._upload, Result.file)]
        described = () if self._parent else (self._describe, self._describe_experiment)
        return [*steps, self._publish, *described, self._end]

    def _do(self, steps: list[Step]) -> None:
        while steps:
            steps[0]()
            del steps[0]
            self._count_call()

    def _count_call(self) -> None:
        self.calls += 1
        if self._parent is not None:
            self._parent._count_call()

    def _find_experiment(self) -> None:
        if self._parent is not None:
            self.experiment_id = self._parent.experiment_id
            return
        name, location = self._identity.experiment, self._identity.artifact_location
        self.experiment_id = experiment_id(self.client, name, location)

    def _find_or_create(self) -> None:
        self._run = self._find_run()
        if self._run is None:
            self._may_exist = True  # from now on: the answer may be lost
            self._run = self._create_run()
        self._tags = dict(self._run.data.tags)
        if self._parent is not None:
            self._parent._children[self._identity.key] = self._run
            if self._tags.get(PARENT_TAG) != self._parent.run_id:  # the former parent was deleted
                self.client.set_tag(self.run_id, PARENT_TAG, self._parent.run_id)
                self._tags[PARENT_TAG] = str(self._parent.run_id)
        if self._tracked.run_id != self.run_id:
            self._forget_position()
            self.remember(run_id=self.run_id)

    def _find_run(self) -> Any:
        key = self._identity.key
        if self._parent is not None and key in self._parent._children:
            return self._parent._children[key]
        if self._parent is not None and not self._may_exist:
            return None
        found = self.client.search_runs([self.experiment_id], f"tags.`{KEY_TAG}` = '{key}'")
        return only_one(self.client, found)

    def _create_run(self) -> Any:
        tags = {KEY_TAG: self._identity.key, "mlflow.source.name": "shoal", "mlflow.source.type": "JOB"}
        tags["mlflow.user"] = os.environ.get("USER") or socket.gethostname()
        if self._parent is not None:
            tags[PARENT_TAG] = str(self._parent.run_id)
        tags |= self._metadata_tags()
        identity = self._identity
        return self.client.create_run(
            self.experiment_id, identity.start_ms, tags, cockpit.run_title(identity)
        )

    def _forget_position(self) -> None:
        """Start over: the run is new to this store, which has none of the points."""
        self._reader, self._unsent = JournalReader(self._folder), []

    def _begin(self) -> None:
        """Show the run as RUNNING if it is, under the lease of its driver."""
        self._write_lease()  # before: another process must not reap it by the lease of an earlier attempt
        if self._identity.status != "RUNNING":
            return
        self._set_reason(None)
        if self._run.info.status != "RUNNING" and self._mark_in_force is None:
            self.client.update_run(self.run_id, status="RUNNING")

    def _describe(self) -> None:
        """Send the params that MLflow does not have, and the tags that have changed."""
        from mlflow.entities import Param, RunTag

        known = self._run.data.params
        params = [
            Param(key, value)
            for key, value in cockpit.run_params(self._folder, self._identity).items()
            if key not in known
        ]
        tags = {key: text for key, text in self._metadata_tags().items() if self._tags.get(key) != text}
        if params or tags:
            run_tags = [RunTag(key, text) for key, text in tags.items()]
            self.client.log_batch(self.run_id, params=params, tags=run_tags)
            self._tags |= tags
        if self._mark_in_force:
            self.close_run(*self._mark_in_force)

    def _describe_experiment(self) -> None:
        if page := cockpit.describe_experiment(self.client, self._folder, str(self.experiment_id)):
            self.remember(runs_table=page)

    @property
    def _mark_in_force(self) -> tuple[Status, str] | None:
        return self._parent._marked if self._parent else self._marked

    def _metadata_tags(self) -> dict[str, str]:
        return cockpit.run_tags(self._folder, self.run_id, self.experiment_id)

    def _log_inputs(self) -> None:
        metadata = self._folder.load(Metadata)
        if metadata and metadata.dataset:
            for context in metadata.contexts:  # of several inputs of one data set, a call keeps the first
                self.client.log_inputs(self.run_id, [dataset_input(metadata.dataset, context)])

    def _check(self) -> None:
        """Look at the run as MLflow has it now.

        Raises:
            RunLostError: it was deleted; `forget_if_lost` has it made anew.
        """
        if self._parent is not None:
            return  # the sweep has looked at all its trials at once
        found = self._find_run()
        if found is None or found.info.run_id != self.run_id:
            raise RunLostError(f"run {self.run_id} was deleted in MLflow")
        self._run, self._tags = found, dict(found.data.tags)

    def _send_last_points(self) -> None:
        self._reader.look_again()
        self.send_points()
        if not self._is_position_saved:
            self._save_position()

    def _complete_result(self) -> None:
        """Add to the result what only this process knows."""
        with never_failing():
            if self._folder.exists(Result.file):
                self._folder.update(Result, mlflow_run_id=self.run_id, runs_table=self._tracked.runs_table)

    def _publish(self) -> None:
        if self._folder.exists(f"{MODEL}/{MODEL_CARD}"):
            from shoal.registry.publish import Publication

            if self._publication is None or self._publication.run_id != self.run_id:
                # Its own process holds the lease; any other may have got the folder from somebody else.
                is_own = (self._parent or self)._folder.holder() is not None
                self._publication = Publication(
                    self._folder, str(self.experiment_id), str(self.run_id), is_own
                )
            self._publication.publish(self.client, self._count_call)
            self._publication = None

    def _end(self) -> None:
        """Set the final status; a run whose process is gone without a word has failed."""
        if self.ending:
            self.close_run(*self.ending)
            return
        identity = self._folder.identity()
        if identity.status == "RUNNING":
            if self._folder.holder():
                return
            reason = "the driver died; the same command resumes the run"
            identity = self._folder.update(Identity, status="FAILED", reason=reason)
        self.close_run(identity.status, identity.reason, identity.end_ms)

    def _set_reason(self, reason: str | None) -> None:
        """Set the tag that says why the run ended, or remove that of an earlier attempt."""
        text = reason_text(reason)
        if text is None and REASON_TAG in self._tags:
            self.client.delete_tag(self.run_id, REASON_TAG)
            del self._tags[REASON_TAG]
        elif text is not None and self._tags.get(REASON_TAG) != text:
            self.client.set_tag(self.run_id, REASON_TAG, text)
            self._tags[REASON_TAG] = text

    def _upload(self, name: str, where: str | None = None) -> None:
        if self._folder.exists(name):
            with self._on_disk(name) as path:
                self.client.log_artifact(self.run_id, str(path), where)

    @contextlib.contextmanager
    def _on_disk(self, name: str) -> Iterator[Path]:
        local = self._folder.local(name)
        if local:
            yield local
            return
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / Path(name).name
            path.write_bytes(self._folder.read(name))
            yield path


@contextlib.contextmanager
def never_failing() -> Iterator[None]:
    """Let a folder that cannot be written keep what it has: what is lost is found out again."""
    try:
        yield
    except OSError as error:
        logger.debug("not recorded: %s", error)
