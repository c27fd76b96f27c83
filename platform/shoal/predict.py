"""A trained model with the transform it was fitted with: raw rows in, labels out.

This is what MLflow loads as a pyfunc model (`_load_pyfunc`). It needs torch and the transform; it knows no
Ray, no MLflow and no training.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from shoal.data.config import DataConfig
from shoal.data.prepare import Recipe
from shoal.data.shard import Batch
from shoal.data.sources import Block, to_array
from shoal.data.transform import Transform
from shoal.errors import ModelError
from shoal.models import build
from shoal.models.config import ModelConfig
from shoal.tasks import Task, TaskName, make_task

WEIGHTS, DESCRIPTION = "model.safetensors", "description.json"
BATCH_ROWS = 4096


class Predictor:
    """A model that takes raw rows."""

    def __init__(self, model: torch.nn.Module, transform: Transform, task: Task, trained_on: Recipe) -> None:
        self.model, self.transform, self.task, self.trained_on = model.eval(), transform, task, trained_on

    @classmethod
    def load(cls, folder: str | Path) -> "Predictor":
        """Load from the folder that `describe` and the weights were written to.

        Raises:
            ModelError: the folder is not there or not whole.
        """
        folder = Path(folder)
        try:
            facts = json.loads((folder / DESCRIPTION).read_text())
            weights = load_file(folder / WEIGHTS)
        except (OSError, ValueError, SafetensorError) as error:
            raise ModelError(
                f"'{folder}' holds no Shoal model ({error}): give a folder that training wrote"
            ) from None
        transform = Transform.model_validate(facts["transform"])
        model = build(ModelConfig(**facts["model"]), transform.input_shape, transform.outputs, seed=0)
        model.load_state_dict(weights)
        task = make_task(facts["task"], len(transform.label.classes), transform.label.std)
        is_ready = transform.columns[0].kind == "ready"
        is_classification = facts["task"] == "classification"
        return cls(
            model,
            transform,
            task,
            Recipe(DataConfig(**facts["data"]), facts["seed"], is_classification, is_ready),
        )

    def outputs(self, block: Block) -> Tensor:
        """Return the model's raw outputs [rows, outputs], float64."""
        inputs = torch.from_numpy(self.transform.features(block))
        with torch.no_grad():
            return torch.cat([self.model(part) for part in inputs.split(BATCH_ROWS)]).double()

    def predict(self, data: Any, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Predict from a frame, a dict of columns, or the array of the one tensor column.

        Returns:
            One row per input row: `prediction`, and for a classification `probabilities`, one per class in the
            order of the label's classes.
        """
        outputs = self.outputs(as_block(data, self.transform))
        label = self.transform.label
        if not label.classes:
            return pd.DataFrame({"prediction": label.values(outputs.reshape(-1).numpy())})
        probabilities = outputs.softmax(dim=1).numpy()
        return pd.DataFrame(
            {
                "prediction": label.values(probabilities.argmax(axis=1)),
                "probabilities": [row.tolist() for row in probabilities],
            }
        )

    def sums(self, block: Block) -> Tensor:
        """Return the task's sums over labelled rows, as evaluation reduces them."""
        targets = torch.from_numpy(self.transform.targets(block))
        return self.task.sums(self.outputs(block), Batch(torch.empty(0), targets, count=len(targets)))


def describe(model: ModelConfig, transform: Transform, task: TaskName, data: DataConfig, seed: int) -> str:
    """Return what `Predictor.load` needs besides the weights, and what it was trained on, as JSON."""
    facts = {
        "model": model.model_dump(),
        "transform": transform.model_dump(),
        "task": task,
        "data": data.model_dump(),
        "seed": seed,
    }
    return json.dumps(facts)


def weights_folder(model: str | Path) -> Path:
    """Return the folder that `Predictor.load` takes, inside a saved MLflow model."""
    data = Path(model) / "data"
    if not data.is_dir():
        raise ModelError(
            f"'{model}' is no MLflow model that Shoal wrote: give a run folder, runs:/ID or models:/NAME@ALIAS"
        )
    return next(path for path in data.iterdir() if path.is_dir())


def as_block(data: Any, transform: Transform) -> Block:
    """Turn what callers pass to predict into columns."""
    if isinstance(data, pd.DataFrame):
        return {str(name): to_array(data[name]) for name in data.columns}
    if isinstance(data, Mapping):
        return {str(name): np.asarray(column) for name, column in data.items()}
    return {transform.columns[0].name: np.asarray(data)}


def as_rows(block: Block, transform: Transform) -> Any:
    """Turn columns into what callers pass to predict: an array if all features are one tensor, else a frame."""
    names = [column.name for column in transform.columns]
    if len(names) == 1 and transform.columns[0].kind in ("tensor", "ready"):
        return block[names[0]]
    return pd.DataFrame({name: list(block[name]) if block[name].ndim > 1 else block[name] for name in names})


def _load_pyfunc(path: str) -> Predictor:
    """MLflow's entry point (`loader_module`)."""
    return Predictor.load(path)
