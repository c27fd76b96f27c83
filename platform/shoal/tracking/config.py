"""The `track` section of the config."""

from typing import Annotated, Literal

from pydantic import Field

from shoal.config.schema import Section


class TrackConfig(Section):
    tracking_uri: str | None = Field(
        None, description="of MLflow; null: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db"
    )
    every_steps: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        1, description="optimiser steps between points of train/loss; auto: about 1,000 points in all"
    )
    registered_model_name: str | None = Field(
        None, description="register the verified model under this name; it becomes champion if it is better"
    )
