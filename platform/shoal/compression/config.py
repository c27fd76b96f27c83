"""The config of a compression: what is made of a model, how it is trained on, where it goes."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from shoal.config.schema import Section
from shoal.tracking.config import TrackConfig
from shoal.training.optimizer import OptimConfig

Method = Literal["structured", "magnitude", "2:4"]


class CompressOptions(Section):
    prune: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="share of the channels and hidden units of each layer that leaves, e.g. 0.5",
    )
    method: Method = Field(
        "structured",
        description="of pruning; structured: channels leave; magnitude: weights become zeros, which makes nothing "
        "faster; 2:4: for GPUs alone, refused here",
    )
    epochs: int = Field(1, ge=0, description="of fine-tuning after pruning, on the training rows")
    quantize: Literal["int8", "bf16"] | None = Field(
        None,
        description="int8: an export that computes with 8-bit integers in ONNX Runtime; bf16: weights stored as "
        "bfloat16; of the pruned model, if compress.prune is set",
    )
    max_loss_of: float = Field(
        0.01,
        ge=0,
        description="how much the accuracy may fall (0.01: a point), or the share by which the loss or error may rise; "
        "a variant that is worse is not registered",
    )

    @field_validator("method", mode="before")
    @classmethod
    def _of_yaml(cls, method: object) -> object:
        return "2:4" if method == 124 else method  # YAML 1.1 reads 2:4 as a number to the base of 60


class CompressConfig(Section):
    experiment_name: str = Field("compressions", description="of MLflow, and the folder above the run's")
    storage_path: str = Field("runs", description="where the results go")
    trust_code: bool = Field(
        False,
        description="run the code that the model's description names: its builder, which lies in the model, and the "
        "function of the working directory that returned its data",
    )
    compress: CompressOptions = Field(default_factory=CompressOptions)
    optim: OptimConfig = Field(default_factory=OptimConfig, description="of the fine-tuning")
    track: TrackConfig = Field(default_factory=TrackConfig)

    @model_validator(mode="after")
    def _asks_for_something(self) -> "CompressConfig":
        if self.compress.prune is None and self.compress.quantize is None:
            raise ValueError("set compress.prune=0.5, compress.quantize=int8, or both")
        if self.compress.prune is not None and self.compress.method == "2:4":
            raise ValueError(
                "compress.method=2:4 is sparsity that sparse tensor cores of NVIDIA GPUs compute with, and compression "
                "runs on the CPU, which has no such kernels: set compress.method=structured"
            )
        return self
