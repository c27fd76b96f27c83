"""What an earlier attempt at a sweep left of its trials. Reads their folders alone, and writes nothing."""

import math
from collections import deque
from typing import Any

from shoal.cluster.dataset_cache import DatasetCache
from shoal.runs.config import RunConfig
from shoal.storage.run_folder import IDENTITY, RESULT, RunFolder
from shoal.tracking.journal import JournalReader
from shoal.training.checkpoint.store import CheckpointStore
from shoal.training.loop import total_steps
from shoal.tune.engine import Report, Trial
from shoal.tune.validate import iteration_at


class TrialHistory:
    """Reads trials' folders by the words of the sweep's config."""

    def __init__(self, config: Any, dataset_cache: DatasetCache) -> None:
        self._config, self._pantry = config, dataset_cache

    def restore(self, trial: Trial, folder: RunFolder) -> None:
        """Fill a trial with what its folder holds, if anything."""
        identity = folder.read_json(IDENTITY)
        if identity is None:
            return
        trial.point = identity.get("point", trial.point)
        outcome = (folder.read_json(RESULT) or {}).get("outcome")
        if outcome in ("finished", "stopped", "infeasible"):
            trial.recorded_end = outcome
            reports = self.reports(folder)
        else:
            name, _ = CheckpointStore(folder).latest()
            # At its last evaluation a trial reports its end itself, once it is taken up from there.
            config = self._config.trial(trial.point)
            last = total_steps(config.train, self._pantry.steps(config))
            reports = self.reports(folder, min(int(name.removeprefix("step-")), last - 1) if name else 0)
        waits_for_decision = self._config.tune.scheduler != "none"
        trial.recorded = deque(
            reports if waits_for_decision else reports[-1:] if outcome == "finished" else []
        )

    def reports(self, folder: RunFolder, until_step: float = math.inf) -> list[Report]:
        """Return what a trial reported up to a step, by its journal."""
        metric = self._config.tune.metric
        found = [
            point
            for point in JournalReader(folder).read()
            if point.key == metric and point.step <= until_step
        ]
        if not found:
            return []
        config = self._config.trial((folder.read_json(IDENTITY) or {}).get("point", {}))
        return [self.report(config, point.step, point.value) for point in found]

    def report(self, config: RunConfig, step: int, value: float) -> Report:
        """Return a value at a step as the engine counts, in evaluations."""
        return Report(iteration_at(config, step, self._pantry.steps(config)), step, value)
