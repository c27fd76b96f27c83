"""Shoal trains and tunes PyTorch models on a Ray cluster, with every run recorded in MLflow.

    import shoal

    result = shoal.train("digits.yaml", **{"optim.lr": 0.01})
    result.metrics["test/accuracy"], result.model.predict(frame), result.curves

    sweep = shoal.tune("digits.yaml", space={"optim.lr": shoal.loguniform(1e-4, 1e-1), "model.width": [16, 32]})
    sweep.best.params, sweep.best.model, sweep.trials

Importing the package loads neither torch nor ray nor mlflow: each name is imported when it is first used.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from shoal import errors
from shoal.version import VERSION

if TYPE_CHECKING:
    from shoal.api.config import Config
    from shoal.api.evaluate import evaluate
    from shoal.api.models import Model, load_model
    from shoal.api.results import EvaluationResult, SweepResult, TrainResult
    from shoal.api.space import choice, grid, loguniform, randint, uniform
    from shoal.api.train import train
    from shoal.api.tune import tune as tune
    from shoal.errors import Interrupted, ShoalError, UserError

__version__ = VERSION

__all__ = [
    "Config",
    "EvaluationResult",
    "Interrupted",
    "Model",
    "ShoalError",
    "SweepResult",
    "TrainResult",
    "UserError",
    "__version__",
    "choice",
    "errors",
    "evaluate",
    "grid",
    "load_model",
    "loguniform",
    "randint",
    "train",
    "tune",
    "uniform",
]

_MODULES = {
    "Config": "api.config",
    "EvaluationResult": "api.results",
    "Interrupted": "errors",
    "Model": "api.models",
    "ShoalError": "errors",
    "SweepResult": "api.results",
    "TrainResult": "api.results",
    "UserError": "errors",
    "choice": "api.space",
    "evaluate": "api.evaluate",
    "grid": "api.space",
    "load_model": "api.models",
    "loguniform": "api.space",
    "randint": "api.space",
    "train": "api.train",
    "tune": "api.tune",
    "uniform": "api.space",
}


class _Package(ModuleType):
    """Keeps `shoal.tune` the function: Python would set it to the package of the same name when that is imported."""

    @property
    def tune(self) -> Any:
        return __getattr__("tune")

    @tune.setter
    def tune(self, package: ModuleType) -> None:
        pass


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'shoal' has no attribute '{name}'{errors.nearest(name, __all__)}")
    return getattr(importlib.import_module(f"shoal.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)


sys.modules[__name__].__class__ = _Package
