"""The `track` section of the config."""

from pydantic import Field

from shoal.config import Section


class TrackConfig(Section):
    tracking_uri: str | None = Field(
        None, description="of MLflow; null: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db"
    )
    every_steps: int = Field(1, ge=1, description="optimiser steps between points of train/loss")
    registered_model_name: str | None = Field(
        None, description="register the verified model under this name; it becomes champion if it is better"
    )
