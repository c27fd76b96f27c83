"""Which params the metric depends on, by Optuna's fANOVA over the ranked trials.

It needs no sampler's study: it builds one from the rows, so it works for the trials of any search.
"""

import contextlib
import importlib
from collections.abc import Sequence
from numbers import Integral
from typing import Any

from shoal.storage.records import TrialRow
from shoal.tune.trials import Mode, is_log, is_number, limits, plain, ranked, varying

MIN_TRIALS = 4
# scikit-learn looks for their frames in `sys.modules`, where a module that another thread imports stands unfinished.
FRAMES = ("pandas", "polars", "pyarrow")


def importance(rows: Sequence[TrialRow], mode: Mode) -> dict[str, float]:
    """Return each varying param's share of the metric's variance, largest first; shares sum to 1.

    Computed by Optuna's fANOVA (Hutter, Hoos, Leyton-Brown 2014) over the ranked trials. Metrics are clipped to
    `trials.limits`, since a diverged trial would otherwise be all of the variance. Params that some of the trials
    lack are left out. Empty with fewer than four ranked trials, or when nothing varies.
    """
    done = ranked(rows, mode)
    keys = [key for key in varying(done) if all(key in row.params for row in done)]
    metrics = [row.metric for row in done if row.metric is not None]
    if len(done) < MIN_TRIALS or not keys or len(set(metrics)) < 2:
        return {}
    low, high = limits(metrics, mode)
    clipped = [min(max(metric, low), high) for metric in metrics]
    return _shares([{key: plain(row.params[key]) for key in keys} for row in done], clipped)


def _shares(points: Sequence[dict[str, Any]], values: Sequence[float]) -> dict[str, float]:
    import optuna

    for name in FRAMES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    distributions = {key: _distribution([params[key] for params in points]) for key in points[0]}
    study = optuna.create_study()
    for params, value in zip(points, values, strict=True):
        typed = {key: _typed(params[key], distributions[key]) for key in params}
        study.add_trial(optuna.trial.create_trial(params=typed, distributions=distributions, value=value))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {key: float(share) for key, share in shares.items()}


def _distribution(values: Sequence[Any]) -> Any:
    from optuna import distributions

    if not all(map(is_number, values)):
        return distributions.CategoricalDistribution(sorted({str(value) for value in values}))
    low, high, log = min(values), max(values), is_log(values)
    if all(isinstance(value, Integral) for value in values):
        return distributions.IntDistribution(int(low), int(high), log=log)
    return distributions.FloatDistribution(float(low), float(high), log=log)


def _typed(value: Any, distribution: Any) -> Any:
    """Return the value in the type of its distribution: one param may hold 1 and 0.5, or 1 and 'auto'."""
    kind = {"IntDistribution": int, "FloatDistribution": float}.get(type(distribution).__name__, str)
    return kind(value)
