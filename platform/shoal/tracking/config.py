"""The `track` section of the config."""

import posixpath
from typing import Annotated, Literal

from pydantic import Field, field_validator

from shoal.config.schema import Section


class StoreConfig(Section):
    """Of a job that trains nothing."""

    tracking_uri: str | None = Field(
        None, description="of MLflow; null: MLFLOW_TRACKING_URI, else sqlite:///mlflow.db"
    )


class TrackConfig(StoreConfig):
    """Of a job that trains."""

    every_steps: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        1, description="optimizer steps between points of train/loss; auto: about 1,000 points in all"
    )
    registered_model_name: str | None = Field(
        None, description="register the verified model under this name; it becomes champion if it is better"
    )

    license: str | None = Field(
        None, description="of the registered model, for its card: apache-2.0, ...; null: unknown"
    )

    @field_validator("registered_model_name")
    @classmethod
    def _is_accepted_by_mlflow(cls, name: str | None) -> str | None:
        if name is not None and (
            set(name) & set("/:'")
            or not name.strip()
            or posixpath.normpath(name) != name
            or name in (".", "..")
        ):
            raise ValueError(
                "MLflow takes no slash, colon or apostrophe in it, and no empty name: choose another"
            )
        return name
