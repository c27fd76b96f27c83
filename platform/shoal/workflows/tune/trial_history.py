"""What an earlier attempt at a sweep left of its trials. It reads their folders and writes nothing."""

import math
from dataclasses import replace

from shoal.cluster.dataset_cache import DatasetCache
from shoal.runs.config import RunConfig
from shoal.storage.records import Identity, TrialResult
from shoal.storage.run_folder import RunFolder
from shoal.tracking.journal import all_points
from shoal.training.checkpoint.contents import checkpoint_step
from shoal.training.checkpoint.store import CheckpointStore
from shoal.training.loop import total_steps
from shoal.tune.config import SweepConfig
from shoal.tune.engine import Report, Trial
from shoal.tune.validate import evaluation_steps, iteration_at


class TrialHistory:
    """Reads the folders of trials, with the sweep's config."""

    def __init__(self, config: SweepConfig, dataset_cache: DatasetCache) -> None:
        self._config, self._dataset_cache = config, dataset_cache

    def restore(self, trial: Trial, folder: RunFolder) -> None:
        """Fill in what an earlier attempt recorded of a trial: its point, its reports, and how it ended.

        A trial that took another's result takes it again.
        """
        identity = folder.load(Identity)
        if identity is None:
            return
        trial.point = dict(identity.point) if identity.point is not None else trial.point
        result = folder.load(TrialResult)
        trial.was_begun = result is None or result.same_as is None
        if not trial.was_begun:
            return
        outcome = result.outcome if result else None
        if outcome in ("finished", "stopped", "infeasible"):
            trial.recorded_outcome = outcome
            reports = self._reports(trial, folder)
        else:
            reports = self._reports(trial, folder, self._replayable_until(trial, folder))
        if self._config.tune.scheduler == "none":  # nothing to decide: a finished trial's value is enough
            reports = reports[-1:] if outcome == "finished" else []
        if reports and result and result.outcome == "finished" and result.value is not None:
            reports[-1] = replace(reports[-1], value=result.value)  # of the weights that are its result
        trial.recorded = reports

    def evaluation_steps(self, config: RunConfig) -> int:
        """Return the optimizer steps between a trial's evaluations."""
        return evaluation_steps(config, self._dataset_cache.steps_per_epoch(config))

    def curve(self, folder: RunFolder) -> list[tuple[int, float]]:
        """Return (step, value of the metric) of each evaluation, from a trial's journal."""
        metric = self._config.tune.metric
        return [(point.step, point.value) for point in all_points(folder) if point.key == metric]

    def _reports(self, trial: Trial, folder: RunFolder, until_step: float = math.inf) -> list[Report]:
        found = [(step, value) for step, value in self.curve(folder) if step <= until_step]
        if not found:
            return []
        every = self.evaluation_steps(self._config.trial(trial.point))
        return [Report(iteration_at(step, every), step, value) for step, value in found]

    def _replayable_until(self, trial: Trial, folder: RunFolder) -> int:
        """Return the step up to which reports need not be measured again: that of the last checkpoint.

        The report of the last step is not replayed: a trial resumed from there reports its end itself.
        """
        name, _ = CheckpointStore(folder).latest()
        step = checkpoint_step(name) if name else None
        config = self._config.trial(trial.point)
        last = total_steps(config.train, self._dataset_cache.steps_per_epoch(config))
        return min(step, last - 1) if step else 0
