"""Brings MLflow level with the folder of a sweep: a parent run, and a child for each trial.

Parent and children are run folders, and each is mirrored as any run is (`shoal.tracking.reaper`); here it is told which
run is whose child. A trial that was delivered whole is not looked at again.
"""

import hashlib
import json
import time
from typing import Any

from shoal.storage.run_folder import IDENTITY, METADATA, REPORTS, TRACKED, TRIALS, RunFolder
from shoal.tracking.sync import KEY_TAG, PARENT_TAG, RunSync


class SweepSync(RunSync):
    """The sweep's own run, with those of its trials below it.

    Attributes:
        synced_at_s: when every trial that had ended was in MLflow for the first time, in Unix seconds.
        is_thorough: whether trials that were delivered before are delivered again.
    """

    def __init__(self, folder: RunFolder) -> None:
        super().__init__(folder)
        self.synced_at_s: float | None = None
        self.is_thorough = False
        self._trials: dict[str, RunSync] = {}
        self._delivered: set[str] = set()

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

    def ship(self) -> int:
        """Send what sweep and trials have noted since the last call; close the trials that have ended."""
        sent = super().ship()
        left = [name for name in self._folder.names(TRIALS) if name not in self._delivered]
        for name in left:
            sent += self._ship_trial(name)
        if left:
            self.synced_at_s = time.time() if self._delivered.issuperset(left) else None
        return sent

    def close(self) -> None:
        """Deliver every trial, the report, then the sweep itself."""
        self._delivered.clear()
        self.ship()
        if self._folder.holder() is None:
            for trial in self._trials.values():
                trial.close()  # nobody is at it any more
        for name in self._folder.names(REPORTS):
            self._upload(f"{REPORTS}/{name}")
        super().close()

    def close_run(self, status: str, reason: str | None = None, end_ms: int | None = None) -> None:
        """Close the sweep's run, and with it those of trials that nobody is at any more."""
        for trial in self._trials.values():
            if trial.is_open:
                trial.close_run(status, reason, end_ms)
        super().close_run(status, reason, end_ms)

    def _ship_trial(self, name: str) -> int:
        folder = self._folder.inner(f"{TRIALS}/{name}")
        said = folder.read(IDENTITY) if folder.exists(IDENTITY) else b"{}"
        status = json.loads(said).get("status")
        if status is None or (status == "RUNNING" and not folder.exists(METADATA)):
            return 0  # it has not said yet what it is
        # A trial that is run again, or whose model is handed over, says something else of itself.
        delivered = f"{hashlib.sha256(said).hexdigest()} to {self.identity['tracking_uri']}"
        if (folder.read_json(TRACKED) or {}).get("delivered") == delivered and not self.is_thorough:
            self._delivered.add(name)
            return 0
        if name not in self._trials:
            self._trials[name] = RunSync(folder, self)
        trial = self._trials[name]
        if not trial.is_open:
            trial.open()
        sent = trial.ship()
        # As read before the points were: an end that comes in between is seen the next time.
        if status != "RUNNING":
            trial.close()
            folder.update_json(TRACKED, delivered=delivered)
            self._delivered.add(name)
            del self._trials[name]
        return sent


def make_sync(folder: RunFolder) -> RunSync:
    """Return the mirror that fits a folder: of a sweep, or of a single run."""
    return SweepSync(folder) if folder.identity().get("is_sweep") else RunSync(folder)


def sync(folder: RunFolder) -> str:
    """Bring MLflow level with a run folder, once and completely; return the run's id."""
    sync: Any = make_sync(folder)
    sync.is_thorough = True
    sync.open()
    sync.close()
    return str(sync.run_id)
