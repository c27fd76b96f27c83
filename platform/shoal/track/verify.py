"""Reloads a saved model in a process of its own and measures it on the split it was evaluated on.

`python -m shoal.track.verify MODEL` reads {"data": ..., "seed": ..., "task": ..., "split": ...} from stdin and
prints the metrics as JSON.
"""

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from shoal.errors import VerificationError

RELATIVE, ABSOLUTE = 1e-3, 1e-6


def verify(model: Path, recipe: dict[str, Any], expected: dict[str, float]) -> None:
    """Raise unless a clean process that loads the model finds the expected metrics.

    Args:
        recipe: the config's `data` section, `seed`, `task` and the `split` to measure on.

    Raises:
        VerificationError: it does not load, or measures something else.
    """
    done = subprocess.run(
        [sys.executable, "-m", "shoal.track.verify", str(model)],
        input=json.dumps(recipe),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no output"]
        raise VerificationError(f"the saved model does not load in a clean process: {lines[-1]}")
    found = json.loads(done.stdout.splitlines()[-1])
    for name, value in expected.items():
        if not np.isclose(found[name], value, rtol=RELATIVE, atol=ABSOLUTE, equal_nan=True):
            raise VerificationError(
                f"the saved model measures {name}={found[name]:.6g} in a clean process; training measured {value:.6g}"
            )


def measure(model: str, recipe: dict[str, Any]) -> dict[str, float]:
    """Load with MLflow and measure on raw rows, going through the very predict a consumer calls."""
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    from mlflow import pyfunc

    loaded = pyfunc.load_model(model)  # puts the model's own code on the path
    from shoal.data.config import DataConfig
    from shoal.data.order import SPLITS
    from shoal.data.prepare import Recipe, number_blocks
    from shoal.data.sources import open_source
    from shoal.predict import Predictor, as_rows

    facts = Predictor.load(Path(model) / "data" / _data_folder(model))
    source = open_source(recipe["data"]["source"])
    order = Recipe(DataConfig(**recipe["data"]), recipe["seed"], recipe["task"] == "classification", source.is_ready)
    total, sums = 0, None
    for block, split in number_blocks(source, order):
        mine = split == SPLITS.index(recipe["split"])
        if not mine.any():
            continue
        part = {name: column[mine] for name, column in block.items()}
        measured = facts.sums(part)
        predicted = loaded.predict(as_rows(part, facts.transform))["prediction"].to_numpy()
        if not _same(predicted, facts, part):
            raise VerificationError("pyfunc's predictions differ from the model's own")
        sums = measured if sums is None else sums + measured
        total += int(mine.sum())
    if sums is None:
        raise VerificationError(f"there are no {recipe['split']} rows to measure on")
    return facts.task.metrics(sums)


def _data_folder(model: str) -> str:
    inner = [path.name for path in (Path(model) / "data").iterdir()]
    return inner[0] if inner else ""


def _same(predicted: np.ndarray, facts: Any, part: dict[str, np.ndarray]) -> bool:
    own = facts.predict(part)["prediction"].to_numpy()
    if own.dtype.kind == "f":
        return bool(np.allclose(predicted.astype(float), own, rtol=1e-5))
    return bool((predicted == own).all())


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], json.loads(sys.stdin.read()))))
