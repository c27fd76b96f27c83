"""The config of a compression: what is made of a model, how it is trained on, where it goes."""

import itertools
from typing import Annotated, Literal, TypeVar

from pydantic import BeforeValidator, Field, field_validator, model_validator

from shoal.compression.limits import Limits
from shoal.config.schema import Section
from shoal.tracking.config import TrackConfig
from shoal.training.optimizer import OptimConfig

Method = Literal["structured", "magnitude", "2:4"]
Value = TypeVar("Value")


def _listed(value: object) -> object:
    """Return one value, or several with commas between them, as a list."""
    if value is None:
        return []
    if isinstance(value, str):
        return [part.strip() for part in value.split(",")]
    return value if isinstance(value, list | tuple) else [value]


Several = Annotated[tuple[Value, ...], BeforeValidator(_listed)]


class StudentSize(Section):
    """In what a student differs from its teacher; None: in nothing."""

    width: int | None = None
    depth: int | None = None

    def __str__(self) -> str:
        return (
            "{"
            + ", ".join(f"{key}: {value}" for key, value in self.model_dump(exclude_none=True).items())
            + "}"
        )


class StudentOptions(Section):
    width: Several[Annotated[int, Field(ge=1)]] = Field(
        (), description="model.width of a student, which is taught by the outputs of the model; 32,64: of two"
    )
    depth: Several[Annotated[int, Field(ge=0)]] = Field(
        (), description="model.depth of a student; of several widths and depths each combination is made"
    )

    @property
    def sizes(self) -> list[StudentSize]:
        """Each combination of width and depth; none where neither is set."""
        if not (self.width or self.depth):
            return []
        pairs = itertools.product(self.width or (None,), self.depth or (None,))
        return [StudentSize(width=width, depth=depth) for width, depth in pairs]


class CompressOptions(Section):
    distill: StudentOptions = Field(default_factory=StudentOptions, description="students of the model")
    distill_epochs: int = Field(10, ge=1, description="of a student's training, on the training rows")
    prune: Several[Annotated[float, Field(gt=0, lt=1)]] = Field(
        (),
        description="share of the channels, hidden units and attention heads of each layer that leaves, e.g. 0.5; "
        "0.3,0.5: two variants",
    )
    method: Method = Field(
        "structured",
        description="of pruning; structured: channels leave; magnitude: weights become zeros, which makes nothing "
        "faster; 2:4: for GPUs alone, refused here",
    )
    gradual: bool = Field(
        False,
        description="prune step by step: each share of compress.prune, e.g. 0.2,0.4,0.5, from the variant before, "
        "trained on in between; false: each from the model itself",
    )
    epochs: int = Field(1, ge=0, description="of fine-tuning after pruning, on the training rows")
    quantize: Several[Literal["int8", "int8-weight-only", "bf16"]] = Field(
        (),
        description="int8: an export that computes with 8-bit integers in ONNX Runtime; int8-weight-only, bf16: "
        "weights stored as 8-bit integers or bfloat16; of the students and the pruned models, if there are some",
    )
    max_loss_of: float = Field(
        0.01,
        ge=0,
        description="how much the accuracy may fall (0.01: a point), or the share by which the loss or error may rise; "
        "a variant that is worse is not registered",
    )
    fits: str | None = Field(
        None,
        description="size and median latency that a variant has to fit into, e.g. 2MB, 5ms@batch1; of those that do, "
        "the best one alone is registered",
    )

    @model_validator(mode="after")
    def _is_a_schedule(self) -> "CompressOptions":
        if self.gradual and not (len(self.prune) > 1 and list(self.prune) == sorted(set(self.prune))):
            shares = ",".join(f"{ratio:g}" for ratio in self.prune)
            raise ValueError(
                f"compress.gradual=true with compress.prune={shares or 'null'}: give shares that rise, as in "
                "compress.prune=0.2,0.4,0.5"
            )
        return self

    @field_validator("fits")
    @classmethod
    def _is_a_limit(cls, fits: str | None) -> str | None:
        if fits is not None:
            Limits.parse(fits)
        return fits

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
    optim: OptimConfig = Field(
        default_factory=OptimConfig, description="of the fine-tuning, and of the training of students"
    )
    track: TrackConfig = Field(default_factory=TrackConfig)

    @model_validator(mode="after")
    def _asks_for_something(self) -> "CompressConfig":
        if not (self.compress.distill.sizes or self.compress.prune or self.compress.quantize):
            raise ValueError(
                "set compress.prune=0.5, compress.quantize=int8 or compress.distill.width=32, or several"
            )
        if self.compress.prune and self.compress.method == "2:4":
            raise ValueError(
                "compress.method=2:4 is sparsity that sparse tensor cores of NVIDIA GPUs compute with, and compression "
                "runs on the CPU, which has no such kernels: set compress.method=structured"
            )
        return self
