"""Syncs the folder of a sweep to MLflow: a parent run, and a child for each trial.

Parent and children are run folders, and each is synced as any run is (`shoal.tracking.sync`); here the children get
their parent. A trial that was synced completely is skipped.
"""

import hashlib
import time

from shoal.storage.records import Identity, Metadata, Status
from shoal.storage.run_folder import REPORTS, TRIALS, RunFolder
from shoal.tracking.sync import KEY_TAG, PARENT_TAG, RunSync


class SweepSync(RunSync):
    """The sweep's own run, with those of its trials below it.

    Attributes:
        synced_at_s: when all trials were in MLflow, in Unix seconds; None while they are not.
        is_thorough: whether trials that were synced before are synced again.
    """

    def __init__(self, folder: RunFolder) -> None:
        super().__init__(folder)
        self.synced_at_s: float | None = None
        self.is_thorough = False
        self._trials: dict[str, RunSync] = {}
        self._synced: set[str] = set()

    def open(self) -> None:
        """Find or create the sweep's run, and find those of its trials."""
        super().open()
        token: str | None = None
        while True:
            found = self.client.search_runs(
                [self.experiment_id], f"tags.`{PARENT_TAG}` = '{self.run_id}'", page_token=token
            )
            self._children |= {run.data.tags.get(KEY_TAG): run for run in found}
            token = found.token
            if not token:
                return

    def send_points(self) -> int:
        """Send the new points of sweep and trials; close the trials that have ended."""
        sent = super().send_points()
        left = [name for name in self._folder.names(TRIALS) if name not in self._synced]
        for name in left:
            sent += self._sync_trial(name)
        if left:
            self.synced_at_s = time.time() if self._synced.issuperset(left) else None
        return sent

    def close(self) -> None:
        """Sync every trial, the report, then the sweep itself."""
        self._synced.clear()
        self.send_points()
        if self._folder.holder() is None:
            for trial in self._trials.values():
                trial.close()  # no process works on it any more
        for name in self._folder.names(REPORTS):
            self._upload(f"{REPORTS}/{name}")
        super().close()

    def close_run(self, status: Status, reason: str | None = None, end_ms: int | None = None) -> None:
        """Close the sweep's run, and those of trials that are open."""
        for trial in self._trials.values():
            if trial.is_open:
                trial.close_run(status, reason, end_ms)
        super().close_run(status, reason, end_ms)

    def _sync_trial(self, name: str) -> int:
        folder = self._folder.inner(f"{TRIALS}/{name}")
        identity, is_known = folder.load(Identity), name in self._trials
        if identity is None:
            return 0
        if not is_known and identity.status == "RUNNING" and not folder.exists(folder.path_of(Metadata)):
            return 0  # its params are not known yet
        # The identity of a trial changes when it is run again, or when its model is registered.
        digest = hashlib.sha256(identity.model_dump_json().encode()).hexdigest()
        delivered = f"{digest} to {self.identity.tracking_uri}"
        if not is_known and folder.tracked().delivered == delivered and not self.is_thorough:
            self._synced.add(name)
            return 0
        if not is_known:
            self._trials[name] = RunSync(folder, self)
        trial = self._trials[name]
        if not trial.is_open:
            trial.open()
        sent = trial.send_points()
        # The status was read before the points: a trial that ends in between is closed the next time.
        if identity.status != "RUNNING":
            trial.close()
            trial.remember(delivered=delivered)
            self._synced.add(name)
            del self._trials[name]
        return sent


def make_sync(folder: RunFolder) -> RunSync:
    """Return the sync of a folder: of a sweep, or of a single run."""
    return SweepSync(folder) if folder.identity().is_sweep else RunSync(folder)


def sync(folder: RunFolder) -> str:
    """Sync a run folder to MLflow, completely; return the run's id."""
    sync = make_sync(folder)
    if isinstance(sync, SweepSync):
        sync.is_thorough = True
    sync.open()
    sync.close()
    return str(sync.run_id)
