"""The whole config of a run: every section joined, and the `scale` section."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from shoal.config.schema import Section
from shoal.data.config import DataConfig
from shoal.devices import Accelerator
from shoal.distributed.parallelism import Strategy
from shoal.errors import nearest
from shoal.models.config import ModelConfig
from shoal.models.mup import check_optimizer as check_mup_optimizer
from shoal.tasks.metrics import says_direction
from shoal.tasks.objective import directions
from shoal.tasks.registry import TASKS, TaskName
from shoal.tracking.config import TrackConfig
from shoal.training.checkpoint.contents import CheckpointConfig
from shoal.training.loop import TrainConfig
from shoal.training.optimizer import OptimConfig

# What may differ when a run is resumed: it changes where and how, not what is computed.
FREE_ON_RESUME = (
    "run_name",
    "experiment_name",
    "storage_path",
    "if_exists",
    "scale.",
    "checkpoint.",
    "track.",
    "data.resident",
    "train.micro_batch_size",
    "train.activation_checkpointing",
    "train.compile",
    "profile",
)


class ScaleConfig(Section):
    num_workers: Annotated[int, Field(ge=0)] | list[int] = Field(
        2,
        description="Ray Train workers; 0 trains in this process without Ray; [min, max]: as many as there is room "
        "for at the time",
    )
    use_gpu: bool | Literal["auto"] = Field(
        "auto", description="a GPU for each worker; auto: if there are enough"
    )
    accelerator: Accelerator = Field(
        "auto", description="which kind of device those GPUs are; auto: what torch finds, else the CPU"
    )
    cpus_per_worker: float = Field(1.0, gt=0, description="may be a fraction, e.g. 0.5")
    max_failures: int = Field(
        3,
        ge=0,
        description="how many lost workers, nodes and hangs a run survives without progress",
    )
    strategy: Strategy = Field(
        "ddp",
        description="ddp: each worker holds the model; fsdp: a part of every parameter; "
        "tp: a part of each block's heads and hidden units, on the same rows; fsdp+tp: both",
    )
    tp_size: int | None = Field(
        None,
        ge=1,
        description="of fsdp+tp: workers that share a block's heads; null: 2; the rest share parameters",
    )

    sync_batchnorm: bool = Field(
        True,
        description="BatchNorm over the rows of all workers; false, or train.micro_batch_size: the result depends on "
        "their number, and says so",
    )

    @property
    def needs_accelerator(self) -> bool:
        """Whether a run without a device of its own for each worker is refused."""
        return self.use_gpu is True or self.accelerator not in ("auto", "cpu")

    @property
    def _range(self) -> tuple[int, int]:
        """The least and the greatest number of workers that is asked for."""
        asked = self.num_workers
        return (asked, asked) if isinstance(asked, int) else (asked[0], asked[1])

    @property
    def sizes(self) -> tuple[int, ...]:
        """The numbers of workers that are possible, rising: those that divide into tensor-parallel groups."""
        least, most = self._range
        return tuple(size for size in range(least, most + 1) if size % max(1, self.tensor_size) == 0)

    @property
    def most_workers(self) -> int:
        """What is planned with; a training has fewer workers while the cluster lacks room for them."""
        return self.sizes[-1]

    @property
    def fewest_workers(self) -> int:
        """Without room for so many, a training waits."""
        return self.sizes[0]

    @property
    def is_elastic(self) -> bool:
        """Whether the number of workers may change."""
        return len(self.sizes) > 1

    @property
    def tensor_size(self) -> int:
        """Workers of a tensor-parallel group."""
        return {"tp": self._range[1], "fsdp+tp": self.tp_size or 2}.get(self.strategy, 1)

    @property
    def data_size(self) -> int:
        """Into how many parts the data are divided, at most."""
        return self.parts(self.most_workers)

    def parts(self, workers: int) -> int:
        """Return into how many parts the data are divided among so many workers."""
        return workers // self.tensor_size if workers else 0

    @field_validator("num_workers", mode="before")
    @classmethod
    def _is_a_range(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple):
            return value
        are_numbers = all(isinstance(number, int) and not isinstance(number, bool) for number in value)
        if not (len(value) == 2 and are_numbers and 1 <= value[0] <= value[1]):
            raise ValueError("a range is two whole numbers [min, max], with 1 <= min <= max")
        return value

    @model_validator(mode="after")
    def _has_one_device(self) -> "ScaleConfig":
        chosen = f"scale.accelerator={self.accelerator}"
        if self.accelerator == "cpu" and self.use_gpu is True:
            raise ValueError(f"{chosen} with scale.use_gpu=true: the CPU is no GPU; leave one of them out")
        if self.accelerator not in ("auto", "cpu") and self.use_gpu is False:
            raise ValueError(
                f"{chosen} with scale.use_gpu=false asks for a device and for none; leave one of them out"
            )
        if self.accelerator == "mps" and self._range[1] > 1:
            raise ValueError(
                f"{chosen} with scale.num_workers={self.num_workers}: a machine has one such device, and gloo does not "
                "add its tensors over machines; set scale.num_workers=0 or 1"
            )
        return self

    @model_validator(mode="after")
    def _can_be_shared(self) -> "ScaleConfig":
        chosen = f"scale.strategy={self.strategy}"
        if self.strategy != "ddp" and self._range[1] == 0:
            raise ValueError(
                f"{chosen} with scale.num_workers=0 (0 workers): a model is shared among Ray Train workers; "
                "set scale.num_workers to 1 or more, or scale.strategy=ddp"
            )
        if self.tp_size is not None and self.strategy != "fsdp+tp":
            raise ValueError(
                f"scale.tp_size={self.tp_size} with {chosen}: only fsdp+tp divides its workers into groups; "
                "leave scale.tp_size out, or set scale.strategy=fsdp+tp"
            )
        if self.strategy == "tp" and self._range[0] < self._range[1]:
            raise ValueError(
                f"scale.num_workers={self.num_workers} with {chosen}, which divides each block among all workers: set "
                "one number, or scale.strategy=fsdp+tp"
            )
        if not self.sizes:
            raise ValueError(
                f"scale.num_workers={self.num_workers} does not divide into tensor-parallel groups of "
                f"scale.tp_size={self.tensor_size}: set it to a multiple of {self.tensor_size}"
            )
        return self


class RunConfig(Section):
    free_on_resume: ClassVar[tuple[str, ...]] = FREE_ON_RESUME
    name_prefix: ClassVar[str] = ""

    run_name: str | None = Field(
        None, description="null: made from the config; an unfinished run of the same config is resumed"
    )
    experiment_name: str = Field("shoal", description="of MLflow, and the folder above the run's")
    storage_path: str = Field("runs", description="where run folders are; a folder all nodes share, or s3://")
    if_exists: Literal["resume", "fail", "new"] = Field(
        "resume", description="what to do about a run of this name"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="of splits, order, weights and everything random")
    task: TaskName = Field("classification", description="what is learnt")
    profile: bool = Field(False, description="write a PyTorch profiler trace of some steps into profile/")
    data: DataConfig = Field(default_factory=DataConfig)
    model: ModelConfig = Field(default_factory=ModelConfig)
    optim: OptimConfig = Field(default_factory=OptimConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    scale: ScaleConfig = Field(default_factory=ScaleConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    track: TrackConfig = Field(default_factory=TrackConfig)

    @field_validator("run_name", "experiment_name")
    @classmethod
    def _is_a_folder_name(cls, name: str | None) -> str | None:
        if name is not None and (not name or name.startswith(".") or "/" in name or "\\" in name):
            raise ValueError("it names a folder: no slash, no leading dot, not empty")
        return name

    @model_validator(mode="after")
    def _fits_together(self) -> "RunConfig":
        stopping = self.train.early_stopping
        for key, name in self.compared:
            if not self.may_report(name):
                raise ValueError(
                    f"{key} names '{name}'{nearest(name, self.reported)}: a {self.task} reports "
                    f"{', '.join(self.reported)}"
                )
            if not self.data.validation_fraction and (stopping.patience or key == "train.target"):
                raise ValueError(f"{key} needs a validation split: set data.validation_fraction above 0")
        if self.model.parametrization == "mup":
            check_mup_optimizer(self.optim.kind)
        if self.data.global_batch_size < self.scale.data_size:
            raise ValueError(
                f"data.global_batch_size={self.data.global_batch_size} is less than "
                f"scale.num_workers={self.scale.num_workers}: every worker needs a sample of each batch: "
                f"set data.global_batch_size={self.scale.most_workers} or more"
            )
        return self

    @property
    def reported(self) -> tuple[str, ...]:
        """The metrics of the validation split; a loss of the user's may name more, and leave out the task's own."""
        names = TASKS[self.task].names_of_metrics(self.data.labels)
        return tuple(f"val/{name}" for name in (*names, *self.train.metric_names))

    def may_report(self, name: str) -> bool:
        """Whether there may be a metric of a name; what losses a user's function names is known once it is called."""
        return name in self.reported or (self.train.loss is not None and name.startswith("val/"))

    @property
    def compared(self) -> list[tuple[str, str]]:
        """The metrics that decide something, each with the key that names it."""
        stopping = ("train.early_stopping.metric", self.train.early_stopping.metric)
        return [*(("train.target", name) for name in self.train.target), stopping]

    def has_direction(self, metric: str) -> bool:
        """Whether something says in which direction a metric is better: itself, its name, or that it is a loss."""
        name = metric.rpartition("/")[2]
        return name not in self.train.metric_names or name in self.directions or says_direction(name)

    @property
    def directions(self) -> dict[str, bool]:
        """Whether a higher value is better, by name without "val/", of the metrics whose names do not say it."""
        kind = TASKS[self.task]
        return {**kind.directions_of(self.data.labels), **directions(self.train, kind.metric_kind)}

    @model_validator(mode="after")
    def _has_an_objective(self) -> "RunConfig":
        kind = TASKS[self.task]
        names = [*kind.names_of_metrics(self.data.labels), *self.train.metric_names]
        twice = next((name for number, name in enumerate(names) if name in names[:number]), None)
        if twice is not None:
            raise ValueError(f"train.metrics names '{twice}', which is reported anyway: leave it out")
        if kind.needs_own_loss and self.train.loss is None:
            raise ValueError(
                f"task={self.task} has no loss of its own: set train.loss=package.module:function, which is called "
                "(outputs, targets) and returns the losses [n] of the samples"
            )
        if self.train.class_weight is not None and not kind.is_classification:
            raise ValueError(
                f"train.class_weight={self.train.class_weight} with task={self.task}, which has no classes: leave it "
                "out, or set data.weight to a column of weights"
            )
        return self

    @model_validator(mode="after")
    def _has_labels_that_fit(self) -> "RunConfig":
        kind, label = TASKS[self.task], self.data.label
        if label is None and kind.has_label and not kind.may_have_no_label:
            raise ValueError(
                f"data.label=null with task={self.task}, which learns to predict a column: name it, or set task=custom"
            )
        if self.data.weight is not None and kind.takes_text and not kind.has_label:
            raise ValueError(
                f"data.weight='{self.data.weight}' with task={self.task}, whose rows are pieces of a text: leave it out"
            )
        if isinstance(label, tuple) and not kind.takes_labels:
            raise ValueError(
                f"data.label={list(label)} with task={self.task}, which predicts one column: name one, or set "
                "task=multilabel_classification, regression or custom"
            )
        return self

    @model_validator(mode="after")
    def _is_built_for_shards(self) -> "RunConfig":
        train, strategy = self.train, self.scale.strategy
        asked = {
            "train.ema": train.ema is not None,
            "train.precision=fp16": train.precision == "fp16",
            "train.micro_batch_size=auto": train.micro_batch_size == "auto",
            "optim.name=rprop": self.optim.name == "rprop",
        }
        for name, is_set in asked.items():
            if is_set and strategy != "ddp":
                raise ValueError(
                    f"{name} does not go with scale.strategy={strategy}, which divides the weights: set "
                    "scale.strategy=ddp, or leave it out (bf16 and a fixed train.micro_batch_size go with all)"
                )
        return self
