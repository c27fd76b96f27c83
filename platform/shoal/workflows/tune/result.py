"""The result of a sweep: its best trial's model, packaged and verified, and what `result.json` says of all trials."""

import time
from collections import Counter
from typing import Any

from shoal.cluster.dataset_cache import DatasetCache
from shoal.runs.finalize import package_and_verify
from shoal.runs.resolve import finished_result
from shoal.storage.records import BestTrial, Identity, Outcome, SweepResult, TrialResult, TrialRow
from shoal.storage.run_folder import RunFolder
from shoal.tasks.open_data import preprocessing_spec
from shoal.tune.engine import Trial
from shoal.tune.report.write import Findings
from shoal.workflows.tune.state import SweepState


def package_best(state: SweepState, dataset_cache: DatasetCache, trial: Trial) -> bool:
    """Save, verify and register the best trial's model, as `jobs/train.py` does with its own.

    Returns:
        whether a clean process reproduced its metric; False where no rows were held out.

    Raises:
        VerificationError: the model does not load, or measures something else.
    """
    config, folder = state.trial_config(trial), state.trial_folder(trial)
    cached = dataset_cache.get(config)
    preprocessing = preprocessing_spec(config.data, config.task, config.seed, cached.plan.source)
    outcome = folder.load(Outcome)
    assert outcome is not None, "a ranked trial has ended"
    is_verified = package_and_verify(folder, config, cached.plan.source, preprocessing, cached.info, outcome)
    folder.update(Identity, registered_model_name=state.config.track.registered_model_name)
    return is_verified


def sweep_result(
    state: SweepState, findings: Findings | None, is_verified: bool, **of_run: Any
) -> SweepResult:
    """Return what `result.json` holds; it may be of a sweep that failed before its first trial.

    Args:
        findings: None unless the sweep finished.
        is_verified: whether the best model reproduced its metric.
        of_run: what every result says of its run.
    """
    rows = state.rows()
    ranking = state.ranked(rows)
    ranked = {row.number for row in ranking}
    counts = Counter(row.status for row in rows)
    return SweepResult(
        **of_run,
        metric=state.config.tune.metric,
        mode=state.config.mode,
        best=_best_trial(state, ranking[0], is_verified) if ranking else None,
        trials={"planned": state.plan.total, "ended": state.ended, **counts},
        worker_hours=sum(row.seconds for row in rows) * state.config.scale.most_workers / 3600,
        total_seconds=time.monotonic() - state.attempt_started,
        is_out_of_time=state.is_out_of_time,
        rows=[*ranking, *(row for row in rows if row.number not in ranked)],
        findings=findings.lines if findings else {},
        width_report=findings.width.text() if findings and findings.width else None,
        scaling=findings.scaling.as_dict() if findings and findings.scaling else None,
        disk_bytes=_disk_bytes(state.folder),
    )


def why_no_trial_is_ranked(state: SweepState) -> str:
    """Return why a sweep has no best trial."""
    if state.is_out_of_time:
        return "the time budget ended before the first trial did: raise it; the same command goes on"
    rows = state.rows()
    reasons = sorted({row.reason or row.status for row in rows})
    return f"none of {len(rows)} trials came to a result ({'; '.join(reasons[:3])}): narrow the space"


def finished_sweep(folder: RunFolder) -> SweepResult | None:
    """Return the result of a sweep that has finished, or None."""
    return finished_result(folder, SweepResult)


def covers(result: SweepResult | None, total: int) -> bool:
    """Whether a sweep's result has `total` ended trials: not so when `tune.num_samples` was raised since."""
    return result is not None and result.trials["ended"] >= total and not result.is_out_of_time


def _best_trial(state: SweepState, won: TrialRow, is_verified: bool) -> BestTrial:
    folder = state.trial_folder(state.trials[won.number])
    result = folder.load(TrialResult)
    return BestTrial(
        trial=won.name,
        params=won.params,
        value=won.metric,
        metrics=result.metrics if result else {},
        model=result.model if result else None,
        run_folder=folder.uri,
        mlflow_run_id=folder.tracked().run_id,
        is_verified=is_verified,
    )


def _disk_bytes(folder: RunFolder) -> int | None:
    local = folder.local()
    return sum(path.stat().st_size for path in local.rglob("*") if path.is_file()) if local else None
