"""Reloads a saved model in a process of its own and measures it on the split it was evaluated on.

`python -m shoal.registry.verify` reads `[MODEL, SPLIT, MOST, ROWS]` and writes the metrics into a pipe, both as JSON.
"""

import contextlib
import json
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from shoal.errors import VerificationError
from shoal.inference.artifact_code import TRUST_VARIABLE
from shoal.processes import open_answers, start_answering, stop_signals_blocked

if TYPE_CHECKING:
    from shoal.data.sources.base import Block

RELATIVE, ABSOLUTE = 1e-3, 1e-6
FEW = 2  # rows that a language model writes on


class Verifier:
    """A clean process, started while the model is still being saved, so that what it imports costs no time."""

    def __enter__(self) -> "Verifier":
        with stop_signals_blocked():  # this process ends it
            self._process, self._answers = start_answering(
                ["-m", "shoal.registry.verify"],
                stderr=subprocess.PIPE,
                # The code of the very run that saves the model, wherever this process imports it from.
                env=os.environ | {TRUST_VARIABLE: "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._answers.close()

    def measure(
        self, model: Path, split: str, most: int | None = None, rows: Path | None = None
    ) -> dict[str, float]:
        """Return what the process, loading the model, measures on a split of its own data.

        Args:
            most: measure on so many of the first rows; None: on all.
            rows: a file of `write_rows` with the rows of the split, where the process cannot read the data.

        Raises:
            VerificationError: it does not load.
        """
        _, err = self._process.communicate(json.dumps([str(model), split, most, str(rows) if rows else None]))
        if self._process.returncode:
            lines = err.strip().splitlines() or ["no output"]
            raise VerificationError(f"the saved model does not load in a clean process: {lines[-1]}")
        return json.loads(self._answers.readline())  # type: ignore[no-any-return]


def difference(found: Mapping[str, float], expected: Mapping[str, float]) -> str | None:
    """Return how a clean process's metrics differ from the expected ones; None: they do not."""
    for name, value in expected.items():
        if not np.isclose(found[name], value, rtol=RELATIVE, atol=ABSOLUTE, equal_nan=True):
            here = f"{name}={found[name]:.6g}"
            return f"the saved model measures {here} in a clean process; training measured {value:.6g}"
    return None


def write_rows(path: Path, blocks: Iterable["Block"]) -> None:
    """Write rows for `Verifier.measure`."""
    with path.open("wb") as out:
        for block in blocks:
            pickle.dump(block, out)


def _read_rows(path: str) -> Iterator["Block"]:
    with open(path, "rb") as rows, contextlib.suppress(EOFError):
        while True:
            yield pickle.load(rows)


def evaluate_saved_model(model: str, split: str, most: int | None, rows: str | None) -> dict[str, float]:
    """Load with MLflow and measure on raw rows, going through the very predict that a consumer calls."""
    from mlflow import pyfunc

    loaded = pyfunc.load_model(model)  # puts the model's own code on the path
    from shoal.data.sources.base import read_again
    from shoal.inference.evaluation import evaluate_on_blocks, first_rows, split_blocks
    from shoal.inference.predictor import Predictor, weights_folder
    from shoal.inference.rows import as_rows
    from shoal.tasks.open_data import reopen_source

    own = Predictor.load(weights_folder(model), trust_code=True)

    def compare_predictions(block: "Block") -> "Block":
        some = (
            block
            if own.transform.has_label or not own.transform.tokenizer
            else {name: rows[:FEW] for name, rows in block.items()}
        )
        raw = as_rows(some, own.transform)
        predicted, expected = loaded.predict(raw), own.predict(raw)
        for name in expected:
            if not _agree(predicted[name].to_numpy(), expected[name].to_numpy()):
                raise VerificationError(f"pyfunc's predictions differ from the model's own ('{name}')")
        return block

    if rows:
        blocks = partial(_read_rows, rows)
    else:
        source = reopen_source(own.preprocessing, own.task.name)
        blocks = partial(split_blocks, source, own.preprocessing, split)
    added = read_again(lambda: evaluate_on_blocks(own, map(compare_predictions, first_rows(blocks(), most))))
    if added is None:
        raise VerificationError(f"there are no {split} rows to measure on")
    return added.results()


def _agree(one: np.ndarray, other: np.ndarray) -> bool:
    if other.dtype == object and len({np.shape(row) for row in other if isinstance(row, list)}) > 1:
        return all(_agree(np.array(a), np.array(b)) for a, b in zip(one, other, strict=True))
    if other.dtype.kind == "f":
        return bool(np.allclose(one.astype(float), other, rtol=1e-5))
    if len(other) and isinstance(other[0], list):
        return bool(np.allclose(np.array(one.tolist()), np.array(other.tolist()), rtol=1e-5))
    return bool((one == other).all())


def main(pipe: str) -> None:
    """Import what takes long, then measure the model and split that standard input names."""
    answers = open_answers(pipe)
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    import torch  # noqa: F401
    from mlflow import pyfunc  # noqa: F401

    answers.write(json.dumps(evaluate_saved_model(*json.load(sys.stdin))) + "\n")
    answers.close()


if __name__ == "__main__":
    main(sys.argv[1])
