"""Weights alone as safetensors, with the description that rebuilds model and transform around them."""

import copy
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from shoal.export.interface import Output
from shoal.inference import golden
from shoal.inference.description import DESCRIPTION, WEIGHTS, Description
from shoal.inference.predictor import Predictor
from shoal.models.weights import load_weights


def write(source: Path, folder: Path) -> None:
    """Copy weights and description of a saved model, and the golden rows that it has."""
    for name in (WEIGHTS, DESCRIPTION, golden.ROWS, golden.ANSWERS):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)


def outputs(answers: Sequence[np.ndarray]) -> tuple[Output, ...]:
    """Describe answers that are compared in this process alone."""
    return tuple(
        Output(name=str(place), dtype=str(values.dtype), shape=(), meaning="")
        for place, values in enumerate(answers)
    )


def read(folder: Path, like: Predictor) -> Predictor:
    """Return a predictor with the weights and transform of the folder, built as another one."""
    module = copy.deepcopy(like.model)
    for tensor in module.state_dict().values():
        tensor.zero_()
    module.load_state_dict(load_weights(folder / WEIGHTS))
    transform = Description.load(folder / DESCRIPTION).transform
    return Predictor(module, transform, like.task, like.preprocessing)
