"""The `model` section of the config."""

from typing import Any, Literal

from pydantic import Field, model_validator

from shoal.config.schema import Section


class ModelConfig(Section):
    name: str = Field(
        "mlp",
        description="mlp, gpt, bert, resnet, inception, speech, huggingface:ARCHITECTURE (e.g. huggingface:gpt2), "
        "or package.module:Builder",
    )
    width: int = Field(
        128,
        ge=1,
        description="units of the widest hidden layer, of a transformer's residual stream, or first channels",
    )
    depth: int | None = Field(
        None,
        ge=0,
        description="number of hidden layers, blocks, or layers of a resnet; null: the model's own default",
    )
    parametrization: Literal["standard", "mup"] = Field(
        "standard", description="mup: the learning rate that is best at base_width is best at every width"
    )
    base_width: int | None = Field(
        None,
        ge=1,
        description="width at which mup and standard are the same; the learning rate is tuned there",
    )
    args: dict[str, Any] = Field(
        default_factory=dict, description="more keyword arguments of the model's builder, e.g. {dropout: 0.1}"
    )
    init: str | None = Field(
        None,
        description="pretrained weights: a folder of safetensors, as transformers' save_pretrained writes them, a "
        "Shoal run folder, a .safetensors file, or a .pt or .pth file with a state_dict; what fits is loaded",
    )
    freeze: list[str] = Field(
        default_factory=list,
        description="parameters or modules that are not trained, by name patterns, e.g. [encoder.*]; their BatchNorm "
        "layers keep their statistics, too (eval mode)",
    )

    @model_validator(mode="after")
    def _mup_has_a_base(self) -> "ModelConfig":
        if self.parametrization == "mup" and self.base_width is None:
            raise ValueError(
                "model.parametrization=mup scales a model from model.base_width, which is not set: "
                "set it to the width the learning rate is tuned at, e.g. model.base_width=64"
            )
        return self
