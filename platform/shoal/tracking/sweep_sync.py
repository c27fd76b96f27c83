"""Syncs the folder of a sweep to MLflow: a parent run, and a child for each trial.

Parent and children are run folders, and each is synced as any run is (`shoal.tracking.sync`); here the children get
their parent. A trial that was synced completely is skipped, while MLflow has it as its folder says.
"""

import hashlib
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

from shoal.errors import LeaseLostError, UserError
from shoal.storage.records import Identity, Metadata, Result, Status
from shoal.storage.run_folder import REPORTS, TRIALS, RunFolder
from shoal.tracking.entities import only_one, reason_text
from shoal.tracking.sync import KEY_TAG, PARENT_TAG, REASON_TAG, RunSync, Step, never_failing

IN_A_ROW = 3  # trials that fail one after another: MLflow is away, and the others would only wait
# 10,000 folders take 0.1 s to list on a disk, and 10 requests in an object store.
MANY, LISTING_PAUSE = 1000, 50  # trials; pause after a listing, in times of what it took
TRIES, RETRY_S = 4, 1.0  # of a sync that gets nowhere


class TrialSyncError(Exception):
    """Some trials were not synced; the first one's error is the cause."""


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
        self._complete_since: float | None = None  # `synced_at_s` as it was before the last look at MLflow
        self._trials: dict[str, RunSync] = {}
        self._synced: set[str] = set()
        self._keys: dict[str, str] = {}  # of the trials, by their names
        self._failures: Counter[str] = Counter()  # by trial
        self._names: list[str] = []  # of the trials' folders, as listed last
        self._list_again_s = 0.0

    def send_points(self) -> int:
        """Send the new points of sweep and trials; close the trials that have ended.

        Raises:
            TrialSyncError: after the others, for the first that MLflow did not accept.
            StorageError: after the others, for the first with a damaged file.
        """
        sent = super().send_points()
        left = [name for name in self._trial_names() if name not in self._synced]
        in_a_row, failed = 0, list[tuple[str, Exception]]()
        for name in sorted(left, key=self._failures.__getitem__):  # none holds up the others for ever
            try:
                sent += self._sync_trial(name)
                in_a_row = 0
            except Exception as error:
                failed.append((name, error))
                self._failures[name] += 1
                in_a_row += not isinstance(error, UserError)
                if name in self._trials:
                    self._trials[name].forget_if_lost(error)
                if in_a_row == IN_A_ROW:
                    break
        if left:
            self.synced_at_s = time.time() if self._synced.issuperset(left) else None
        if failed:
            name, cause = next((one for one in failed if not isinstance(one[1], UserError)), failed[0])
            if isinstance(cause, UserError):
                raise cause
            raise TrialSyncError(f"trial {name}: {type(cause).__name__}: {cause}") from cause
        return sent

    def _trial_names(self) -> list[str]:
        """List the trials' folders; where they are many, so seldom that it takes a small share of the time."""
        if len(self._names) < MANY or time.monotonic() > self._list_again_s:
            since = time.monotonic()
            self._names = self._folder.names(TRIALS)
            self._list_again_s = time.monotonic() + LISTING_PAUSE * (time.monotonic() - since)
        return self._names

    def forget_if_lost(self, error: Exception) -> None:
        """Open the sweep's run, and those of all trials, again if MLflow does not have it any more."""
        super().forget_if_lost(error)
        if not self.is_open:
            self._trials.clear()
            self._synced.clear()

    def close_run(self, status: Status, reason: str | None = None, end_ms: int | None = None) -> None:
        """Close the sweep's run, and those of trials that are open."""
        for trial in list(self._trials.values()):
            if trial.exists:
                trial.close_run(status, reason, end_ms)
        super().close_run(status, reason, end_ms)

    def _steps_to_open(self) -> list[Step]:
        return [*super()._steps_to_open(), self._list_children]

    def _steps_to_close(self) -> list[Step]:
        reports = [partial(self._upload, f"{REPORTS}/{name}") for name in self._folder.names(REPORTS)]
        return [*reports, *super()._steps_to_close()]

    def _check(self) -> None:
        """Look at the sweep's run and at all of its trials, which may have been changed or deleted in MLflow."""
        super()._check()
        self._list_children()
        self._complete_since, self.synced_at_s = self.synced_at_s, None
        self._names = []
        self._synced.clear()

    def _list_children(self) -> None:
        by_key: dict[str | None, list[Any]] = {}
        for run in self._found_children():
            by_key.setdefault(run.data.tags.get(KEY_TAG), []).append(run)
        self._children = {str(key): only_one(self.client, runs) for key, runs in by_key.items()}

    def _found_children(self) -> Iterator[Any]:
        token: str | None = None
        while True:
            found = self.client.search_runs(
                [self.experiment_id], f"tags.`{PARENT_TAG}` = '{self.run_id}'", page_token=token
            )
            yield from found
            token = found.token
            if not token:
                return

    def _send_last_points(self) -> None:
        """Sync every trial; close those that no process works on any more, and delete what they replace."""
        super()._send_last_points()
        if self._folder.holder() is None:
            for name in self._folder.names(TRIALS):
                if name not in self._synced:
                    self._end_abandoned(name)
            self.send_points()
        if self.synced_at_s is not None and self._complete_since is not None:
            self.synced_at_s = self._complete_since  # nothing was missing
        self._delete_replaced()

    def _end_abandoned(self, name: str) -> None:
        folder = self._trial(name)
        identity = folder.load(Identity)
        if identity and identity.status == "RUNNING":
            folder.update(
                Identity, status="FAILED", reason="the driver died; the same command resumes the run"
            )

    def _delete_replaced(self) -> None:
        """Delete the runs of trials whose folders were deleted, once those that were trained instead are in MLflow."""
        keys = set(self._keys.values())
        for key, run in list(self._children.items()):
            if key not in keys and run.info.run_name.partition(" ")[0] in self._keys:
                self.client.delete_run(run.info.run_id)
                del self._children[key]

    def _complete_result(self) -> None:
        super()._complete_result()
        with never_failing():
            result = self._folder.load(Result)  # the fields of a sweep are among its `model_extra`
            if result is None:
                return
            changes: dict[str, Any] = {"records_complete": self.synced_at_s}
            best = (result.model_extra or {}).get("best")
            if best:
                changes["best"] = best | {"mlflow_run_id": self._trial(best["trial"]).tracked().run_id}
            self._folder.save(result.model_copy(update=changes))

    def _metadata_tags(self) -> dict[str, str]:
        tags = super()._metadata_tags()
        best = tags.get("best.trial")
        if best:  # the driver may have ended before MLflow had the trial
            tags["best.run_id"] = str(self._trial(best).tracked().run_id)
        return tags

    def reopen(self) -> bool:
        """Let the sweep say RUNNING again, and its open trials, which whoever closed it closed too."""
        was_closed = super().reopen()
        if was_closed:
            for trial in list(self._trials.values()):
                if trial.is_open:
                    trial.reopen()
        return was_closed

    def _sync_trial(self, name: str) -> int:
        folder = self._trial(name)
        identity, is_open = folder.load(Identity), name in self._trials
        if identity is None:
            return 0
        self._keys[name] = identity.key
        if not is_open and identity.status == "RUNNING" and not folder.exists(folder.path_of(Metadata)):
            return 0  # its params are not known yet
        # The identity of a trial changes when it is run again, or when its model is registered.
        text = f"{identity.model_dump_json()} {self.identity.tracking_uri} {self.run_id}"
        delivered = hashlib.sha256(text.encode()).hexdigest()
        may_skip = not is_open and not self.is_thorough
        if may_skip and self._has(identity) and folder.tracked().delivered == delivered:
            self._synced.add(name)
            return 0
        if not is_open:
            self._trials[name] = RunSync(folder, self)
        trial = self._trials[name]
        trial.open()
        sent = trial.send_points()
        # The status was read before the points: a trial that ends in between is closed the next time.
        if identity.status != "RUNNING":
            trial.close()
            trial.remember(delivered=delivered)
            self._synced.add(name)
            del self._trials[name]
        return sent

    def _trial(self, name: str) -> RunFolder:
        return self._folder.inner(f"{TRIALS}/{name}")

    def _has(self, identity: Identity) -> bool:
        """Whether MLflow has the run of a trial that has ended as it ended."""
        run = self._children.get(identity.key)
        if run is None or run.info.status != identity.status:
            return False
        return bool(run.data.tags.get(REASON_TAG) == reason_text(identity.reason))


def make_sync(folder: RunFolder) -> RunSync:
    """Return the sync of a folder: of a sweep, or of a single run."""
    return SweepSync(folder) if folder.identity().is_sweep else RunSync(folder)


def sync(folder: RunFolder) -> str:
    """Sync a run folder to MLflow, completely; return the run's id. Calls that fail are tried again.

    Raises:
        LeaseLostError: a process has begun to work on the run meanwhile.
    """
    lease = folder.lease()
    sync = make_sync(folder.of_attempt(lease.attempt if lease else 0))
    if isinstance(sync, SweepSync):
        sync.is_thorough = True
    tries = 0
    while True:
        before = sync.calls
        try:
            sync.open()
            sync.close()
            return str(sync.run_id)
        except (UserError, LeaseLostError):  # a damaged file; a run that goes on
            raise
        except Exception as error:
            sync.forget_if_lost(error)
            tries = 1 if sync.calls > before else tries + 1
            if tries == TRIES:
                raise
            time.sleep(RETRY_S)
