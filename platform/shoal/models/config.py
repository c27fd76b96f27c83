"""The `model` section of the config."""

from typing import Any

from pydantic import Field

from shoal.config import Section


class ModelConfig(Section):
    name: str = Field("mlp", description="mlp, gpt, bert, or your own builder as package.module:Builder")
    width: int = Field(
        128, ge=1, description="units of the widest hidden layer; of a transformer, its residual stream"
    )
    depth: int = Field(2, ge=0, description="hidden layers; of a transformer, blocks")
    args: dict[str, Any] = Field(
        default_factory=dict, description="further keyword arguments of the builder, e.g. {dropout: 0.1}"
    )
