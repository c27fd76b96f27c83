"""A trained model in use: raw rows in, predictions out."""

import os
import tempfile
from typing import Any

import pandas as pd
from torch import nn

from shoal.config.secrets import hide
from shoal.inference.predictor import Predictor
from shoal.inference.rows import TEXT
from shoal.registry.model_uri import resolve_model
from shoal.runs.locations import resolve_tracking_uri
from shoal.tracking.config import StoreConfig


class Model:
    """A trained model with the preprocessing that it was trained with.

    Attributes:
        uri: where it was loaded from.
    """

    def __init__(self, predictor: Predictor, uri: str) -> None:
        self.predictor, self.uri = predictor, uri

    @property
    def module(self) -> nn.Module:
        """The PyTorch module, in eval mode."""
        return self.predictor.model

    @property
    def task(self) -> str:
        """What it has learnt, as `task` in a config."""
        return self.predictor.task.name

    @property
    def classes(self) -> tuple[Any, ...]:
        """The classes of the label, in the order of `probabilities`; empty if it predicts no classes."""
        return self.predictor.transform.label.classes

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it takes."""
        return tuple(column.name for column in self.predictor.transform.columns)

    def predict(self, rows: Any, **params: Any) -> pd.DataFrame:
        """Predict from raw rows: a frame (pandas, polars, Arrow), a dict of columns, an array, or a list of texts.

        Args:
            params: of a language model: `max_new_tokens`, `temperature`, `seed`.

        Returns:
            One row per input row: `prediction`, and `probabilities` of a classification, in the order of `classes`.

        Raises:
            DataError: a column is missing.
        """
        if isinstance(rows, list | tuple) and rows and all(isinstance(row, str) for row in rows):
            rows = {TEXT: list(rows)}
        elif hasattr(rows, "to_pandas"):  # of polars, Arrow, or Ray Data
            rows = rows.to_pandas()
        return self.predictor.predict(rows, params)

    def __repr__(self) -> str:
        parameters = sum(parameter.numel() for parameter in self.module.parameters())
        return (
            f"<shoal model {self.uri}: {type(self.module).__name__}, {parameters:,} parameters, {self.task}>"
        )


def load_model(
    uri: str | os.PathLike[str], *, trust_code: bool = False, tracking_uri: str | None = None
) -> Model:
    """Load a model that was trained before.

    Args:
        uri: a run folder, `runs:/ID`, `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
        trust_code: run the model's own code (its builder, your class), which lies in the saved model. Code that this
            process has passed to `shoal.train` itself needs no such permission.
        tracking_uri: of MLflow, where the model is not in a run folder; None: as `track.tracking_uri`.

    Raises:
        ModelError: there is no such model, or it is built by code and `trust_code` is not set.
    """
    name = hide(os.fspath(uri))
    found = resolve_model(
        name, resolve_tracking_uri(StoreConfig(tracking_uri=hide(tracking_uri))), _downloads()
    )
    return Model(Predictor.load(found, trust_code=trust_code), name)


def own_model(folder: str) -> Model:
    """Load the model that a run of this process has saved."""
    found = resolve_model(folder, resolve_tracking_uri(StoreConfig()), _downloads())
    return Model(Predictor.load_own(found), folder)


_FOLDERS: list[
    "tempfile.TemporaryDirectory[str]"
] = []  # removed when the process ends: models import code from them


def _downloads() -> str:
    if not _FOLDERS:
        _FOLDERS.append(tempfile.TemporaryDirectory(prefix="shoal-models-"))
    return _FOLDERS[0].name
