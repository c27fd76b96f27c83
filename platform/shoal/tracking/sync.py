"""One run folder to MLflow: its points, params, tags, inputs and artifacts, as often as one likes.

A second time changes nothing: the run is found by its key, a journal position says which points MLflow has, and MLflow
keeps a point that it receives twice once. Independent of training and of sweeps (`shoal.tracking.sweep_sync`).
"""

import contextlib
import logging
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import JsonValue

from shoal.registry.client import connect
from shoal.storage.records import (
    DatasetRecord,
    Identity,
    JournalPosition,
    Lease,
    Metadata,
    Result,
    Status,
)
from shoal.storage.run_folder import CONFIG, JOURNAL, MODEL, PICTURES, PROFILE, SAMPLE, RunFolder
from shoal.tracking.journal import JournalReader, MetricPoint

KEY_TAG, LEASE_TAG, REASON_TAG = "shoal.run", "shoal.lease", "shoal.reason"
PARENT_TAG = "mlflow.parentRunId"
NO_LEASE = "null"  # the lease tag of a run whose driver has ended
BATCH = 1000  # MLflow's own limit for one log_batch
LEASE_RENEWAL_S = 15.0
SAVE_EVERY_S = {True: 0.0, False: 60.0}  # the journal's position, by whether the run folder is on a disk

logger = logging.getLogger(__name__)


class Ending(NamedTuple):
    """How an attempt ended, from its driver: the folder does not say so where it cannot be written."""

    status: Status
    reason: str | None
    end_ms: int


class RunSync:
    """One run folder's projection into MLflow. Every method may raise whatever MLflow raises."""

    def __init__(self, folder: RunFolder, parent: "RunSync | None" = None) -> None:
        self._folder, self._parent = folder, parent
        self._identity, self._tracked = folder.identity(), folder.tracked()
        self._reader = JournalReader(folder, folder.load_or_new(JournalPosition, inside=JOURNAL))
        self._unsent: list[MetricPoint] = []
        self._is_position_saved, self._saved_s = True, 0.0
        self.ending: Ending | None = None
        self._client: Any = None
        self.run_id: str | None = self._tracked.run_id
        self.experiment_id: str | None = None
        self._tags: dict[str, JsonValue] = {}  # as MLflow has them
        self._renewed_s = 0.0
        self._children: dict[str, Any] = {}  # MLflow's runs below this one, by their key

    @property
    def identity(self) -> Identity:
        return self._identity

    @property
    def client(self) -> Any:
        if self._parent is not None:
            return self._parent.client
        if self._client is None:
            self._client = connect(str(self._identity.tracking_uri))
        return self._client

    @property
    def is_open(self) -> bool:
        return self.experiment_id is not None

    def open(self) -> None:
        """Find or create the run, and give it its params, tags, inputs and first artifacts."""
        self.experiment_id = self._parent.experiment_id if self._parent else self._find_experiment()
        run = self._find_run() or self._create_run()
        self.run_id = run.info.run_id
        if self._parent is not None:
            self._parent._children[self._identity.key] = run
        if self._tracked.run_id != self.run_id:
            self.remember(run_id=self.run_id)
            self._forget_position()
        # Before the run is RUNNING: another process must not reap it by the lease of an earlier attempt.
        if self._folder.holder():
            self.renew_lease()
        self._describe(run)

    def send_points(self) -> int:
        """Send the points written since the last call; return how many there were."""
        from mlflow.entities import Metric

        sent = 0
        # The next ones are read once these have arrived: an outage of MLflow leaves them in the journal.
        while self._unsent or (unsent := self._reader.read_some()):
            self._unsent = self._unsent or unsent
            batch = self._unsent[:BATCH]
            metrics = [Metric(point.key, point.value, point.time_ms, point.step) for point in batch]
            self.client.log_batch(self.run_id, metrics=metrics)
            del self._unsent[: len(batch)]
            sent += len(batch)
        self._is_position_saved &= not sent
        if (
            not self._is_position_saved
            and time.monotonic() - self._saved_s > SAVE_EVERY_S[self._folder.is_local]
        ):
            self._save_position()
        return sent

    def _save_position(self) -> None:
        """Record which points MLflow has; after a crash those since then are sent again, and kept once."""
        self._is_position_saved, self._saved_s = True, time.monotonic()
        with _never_failing():
            self._folder.save(self._reader.position, inside=JOURNAL)

    def remember(self, **changes: Any) -> None:
        """Record what MLflow has; a full disk must not keep MLflow from learning of it."""
        self._tracked = self._tracked.replace(**changes)
        with _never_failing():
            self._folder.update_tracked(**changes)

    def renew_lease(self) -> None:
        """Renew the lease in the run's tags, by which other processes see that its driver is alive."""
        if time.monotonic() - self._renewed_s > LEASE_RENEWAL_S:
            holder = self._folder.holder()
            self.client.set_tag(self.run_id, LEASE_TAG, holder.model_dump_json() if holder else NO_LEASE)
            self._renewed_s = time.monotonic()

    def close(self) -> None:
        """Send what is left: points, tags, pictures, result, model, registration; then the final status."""
        self._reader.look_again()
        self.send_points()
        if not self._is_position_saved:
            self._save_position()
        self._tag()
        self._upload_pictures()
        self._upload(SAMPLE)
        if self._parent is None:
            self._upload(Result.file)
        if self._folder.exists(f"{MODEL}/MLmodel"):
            from shoal.registry.publish import publish_model

            # Its own process holds the lease; any other may have got the folder from somebody else.
            is_own = (self._parent or self)._folder.holder() is not None
            publish_model(self.client, self._folder, str(self.experiment_id), str(self.run_id), is_own)
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

    def close_run(self, status: Status, reason: str | None = None, end_ms: int | None = None) -> None:
        """Set the run's final status and the reason for it."""
        if reason:
            self.client.set_tag(self.run_id, REASON_TAG, reason[:5000])
        self.client.set_terminated(self.run_id, status, end_ms or int(time.time() * 1000))

    def _find_experiment(self) -> str:
        name = self._identity.experiment
        found = self.client.get_experiment_by_name(name)
        if found is None:
            with contextlib.suppress(Exception):  # another process may make it first
                self.client.create_experiment(name, artifact_location=self._identity.artifact_location)
            found = self.client.get_experiment_by_name(name)
        if found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def _find_run(self) -> Any:
        if self._parent is not None:
            return self._parent._children.get(self._identity.key)
        found = self.client.search_runs(
            [self.experiment_id], f"tags.`{KEY_TAG}` = '{self._identity.key}'", max_results=1
        )
        return found[0] if found else None

    def _create_run(self) -> Any:
        tags = {KEY_TAG: self._identity.key, "mlflow.source.name": "shoal", "mlflow.source.type": "JOB"}
        tags["mlflow.user"] = os.environ.get("USER") or socket.gethostname()
        if self._parent is not None:
            tags[PARENT_TAG] = str(self._parent.run_id)
        self._tags = self._metadata_tags()
        tags |= {key: str(value) for key, value in self._tags.items()}
        return self.client.create_run(self.experiment_id, self._identity.start_ms, tags, self._identity.name)

    def _forget_position(self) -> None:
        """Start over: the run is new to this store, which has none of the points."""
        self._reader, self._unsent = JournalReader(self._folder), []

    def _describe(self, run: Any) -> None:
        from mlflow.entities import Param

        if run.info.status != "RUNNING":
            self.client.update_run(self.run_id, status="RUNNING")
        metadata = self._folder.load(Metadata)
        if metadata is None:
            return
        known = run.data.params
        params = [Param(key, str(value)) for key, value in metadata.params.items() if key not in known]
        self.client.log_batch(self.run_id, params=params)
        self._tag()
        if metadata.dataset:
            for context in metadata.contexts:
                self.client.log_inputs(self.run_id, [_dataset_input(metadata.dataset, context)])
        self._upload(CONFIG)
        if self._parent is None:
            self._upload(self._folder.path_of(Metadata))

    def _tag(self) -> None:
        """Send the tags that have changed since the run was opened."""
        from mlflow.entities import RunTag

        tags = self._metadata_tags()
        changed = [RunTag(key, str(value)) for key, value in tags.items() if self._tags.get(key) != value]
        if changed:
            self.client.log_batch(self.run_id, tags=changed)
            self._tags = tags

    def _metadata_tags(self) -> dict[str, JsonValue]:
        metadata = self._folder.load(Metadata)
        return metadata.tags if metadata else {}

    def _upload(self, name: str, where: str | None = None) -> None:
        if self._folder.exists(name):
            with self._on_disk(name) as path:
                self.client.log_artifact(self.run_id, str(path), where)

    def _upload_pictures(self) -> None:
        for where in (PICTURES, PROFILE):
            for name in self._folder.names(where):
                self._upload(f"{where}/{name}", where)

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
def _never_failing() -> Iterator[None]:
    """Let a folder that cannot be written keep what it has: what is lost is found out again."""
    try:
        yield
    except OSError as error:
        logger.debug("not recorded: %s", error)


def parse_lease(tag: str) -> Lease | None:
    """Return the lease that a tag holds, or None where it holds none that this version can read."""
    try:
        return Lease.parse(tag.encode())
    except ValueError:
        return None


def _dataset_input(dataset: DatasetRecord, context: str) -> Any:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    entity = Dataset(
        dataset.name, dataset.digest, dataset.source_type, dataset.source, dataset.columns, dataset.profile
    )
    return DatasetInput(entity, [InputTag("mlflow.data.context", context)])
