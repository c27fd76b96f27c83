"""Every JSON file of a run folder as a typed, versioned record: what stages pass to each other.

Writers and readers use these classes alone (`RunFolder.load`, `save` and `update`). Fields are added, never renamed;
fields of a newer version that this one does not know are kept when a file is read and written again. It knows what
the files hold; it does not know who writes them or why. Long because it is the one list of all
formats.
"""

import math
import shlex
import socket
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    model_validator,
)

from shoal.config.secrets import mask

Status = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]  # MLflow's words
Ending = Literal["finished", "interrupted", "stop", "pause"]
# What ended an attempt of workers.
FailureKind = Literal[
    "user error",
    "data",
    "storage",
    "out of memory",
    "lost worker",
    "hang",
    "preemption",
    "bad host",
    "diverged",
]

# A number that a file has as null where it is not finite; it is read again as not a number.
NullableFloat = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]


class Record(BaseModel):
    """A JSON file. Numbers that are not finite are null in it: JSON has none of them.

    Attributes:
        file: its name in the folder that it belongs to.
        former_file: the name that earlier versions gave it, which is read where the present one is missing.
        remedy: what a person does about a file that is damaged.
    """

    model_config = ConfigDict(extra="allow", frozen=True, ser_json_inf_nan="null")
    file: ClassVar[str]
    former_file: ClassVar[str | None] = None
    remedy: ClassVar[str]

    version: int = Field(1, description="of this format")

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Return the record that a file holds.

        Raises:
            ValueError: the file is empty, is no JSON or holds something else; it says which.
        """
        if not data.strip():
            raise ValueError("the file is empty")
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors()[0]
            if first["type"] == "json_invalid":
                raise ValueError(f"the file is no complete JSON ({first['ctx']['error']})") from None
            place = ".".join(map(str, first["loc"])) or "it"
            raise ValueError(f"{place}: {first['msg']}") from None

    def to_bytes(self) -> bytes:
        return mask(self.model_dump_json(indent=2)).encode()

    def replace(self, **changes: Any) -> Self:
        """Return a copy with other values of some fields, checked as when it is read.

        Raises:
            ValueError: a value is not of its field's type.
            TypeError: there is no such field.
        """
        unknown = changes.keys() - type(self).model_fields.keys()
        if unknown:
            raise TypeError(f"{type(self).__name__} has no field {', '.join(sorted(unknown))}")
        return type(self).model_validate({**dict(self), **changes})


class Part(BaseModel):
    """A part of a record."""

    model_config = ConfigDict(extra="allow", frozen=True)


# -- who a run is, and who works on it -------------------------------------------------------------------------


class Verified(Part):
    """What a clean process measured with the saved model.

    Attributes:
        metric: the one by which versions of a registered model are compared.
        data: fingerprint of the source.
        held_out: which of its rows were measured, and what was predicted; null in what an earlier Shoal wrote.
    """

    metric: str
    value: NullableFloat
    data: str
    held_out: str | None = None


class Identity(Record):
    """Who a run is and how it stands; written by the driver alone.

    Attributes:
        key: a random name, by which its MLflow run is found again.
        start_ms, end_ms: Unix milliseconds.
        tracking_uri: None for a trial, which is synced with its sweep.
        point, repeat: of a trial: its overrides `{dotted.key: value}`, and the number of its seed from 0.
    """

    file: ClassVar[str] = "run.json"
    remedy: ClassVar[str] = "restore the file from a copy, or begin another run with if_exists=new"

    key: str
    start_ms: int
    status: Status = "RUNNING"
    name: str
    experiment: str
    reason: str | None = None
    end_ms: int | None = None
    tracking_uri: str | None = None
    artifact_location: str | None = None
    registered_model_name: str | None = None
    verified: Verified | None = None
    is_sweep: bool = False
    point: dict[str, JsonValue] | None = None
    repeat: int | None = None


class Tracked(Record):
    """The run in MLflow; written by the process that syncs the run.

    Attributes:
        delivered: of a trial: a hash of the identity that was synced last, and the server it was synced to.
        comparison: of the registered version with the champion, in words.
        runs_table: MLflow's page of the experiment's runs, below the server's address.
    """

    file: ClassVar[str] = "tracked.json"
    remedy: ClassVar[str] = "delete the file: the MLflow run is found again by its key"

    run_id: str | None = None
    model_version: int | None = None
    comparison: str | None = None
    delivered: str | None = None
    runs_table: str | None = None


class Lease(Record):
    """The process that works on the folder; a tag of its MLflow run says the same (`shoal.tracking.sync`).

    Each attempt has one, in a folder of its own (`RunFolder.lease`); earlier versions had one beside `run.json`.

    Attributes:
        host: of the process table that the pid is of.
        pid: None once it was released.
        started: when the process started, as `psutil` has it, in seconds; where there are no start ticks.
        start_ticks, boot_id: when the process started, in ticks since the boot, and which boot (`shoal.storage.lease`).
        attempt: number of the attempt, from 1.
        beat: counts the renewals.
        acquired_ms, beat_ms: when it was taken and last renewed, in Unix milliseconds of that host; for people to read.
    """

    file: ClassVar[str] = "lease.json"
    remedy: ClassVar[str] = "make sure that no process works on the run, then delete the file"

    host: str | None = None
    pid: int | None = None
    started: str | None = None
    start_ticks: int | None = None
    boot_id: str | None = None
    attempt: int = 0
    beat: int = 0
    acquired_ms: int | None = None
    beat_ms: int = 0

    @property
    def process(self) -> str:
        """The process in words, e.g. `process 42 on node7, since 2026-01-31 12:00:00`."""
        since = f", since {datetime.fromtimestamp(self.acquired_ms / 1000):%F %T}" if self.acquired_ms else ""
        process = "a process" if self.pid is None else f"process {self.pid}"
        return f"{process} on {(self.host or 'an unknown host').split()[0]}{since}"


# -- what MLflow receives besides metrics -----------------------------------------------------------------------


class DatasetRecord(Part):
    """A data set as MLflow's `Dataset` entity has it; `schema` and `profile` are JSON texts."""

    name: str
    digest: str
    source_type: str
    source: str
    columns: str | None = Field(None, alias="schema")
    profile: str | None = None

    model_config = ConfigDict(extra="allow", frozen=True, populate_by_name=True, serialize_by_alias=True)


class ModelRecord(Part):
    """The size of a model: parameters, their bytes, operations of a forward pass of one sample.

    Attributes:
        trained: parameters that are not frozen.
        not_loaded: what of `model.init` did not fit, in words.
    """

    parameters: int
    bytes: int
    flops_per_sample: int
    trained: int | None = None
    not_loaded: str | None = None


class Environment(Part):
    """What a run ran in."""

    python: str
    platform: str
    processor: str
    gpus: list[str]
    git: dict[str, JsonValue] | None
    argv: list[str]
    packages: dict[str, str]

    @property
    def command(self) -> str:
        """The process as a person typed it; empty for code that no command names, as of a notebook."""
        program, *rest = self.argv or [""]
        path = Path(program)
        if path.name in ("", "-c", "-", "ipykernel_launcher.py"):
            return ""
        if path.name == "__main__.py":
            words = ["python", "-m", path.parent.name]
        else:
            words = ["python", program] if path.suffix == ".py" else [path.name]
        return mask(shlex.join([*words, *rest]))


class RunsTable(Part):
    """How the runs of an experiment are compared in MLflow's table: first columns, and which run comes first.

    Attributes:
        metrics: the first one is what they are sorted by.
    """

    params: list[str]
    metrics: list[str]
    is_ascending: bool


class Metadata(Record):
    """What MLflow receives of a run besides metrics: params, tags, data set, model size, environment."""

    file: ClassVar[str] = "metadata.json"
    former_file: ClassVar[str | None] = "facts.json"
    remedy: ClassVar[str] = "delete the file: the same command writes it again"

    params: dict[str, JsonValue] = Field(default_factory=dict)
    tags: dict[str, JsonValue] = Field(default_factory=dict)
    contexts: list[str] = Field(default_factory=list)
    dataset: DatasetRecord | None = None
    model: ModelRecord | None = None
    environment: Environment | None = None
    table: RunsTable | None = None

    def extended(
        self, params: Mapping[str, Any] | None = None, tags: Mapping[str, Any] | None = None
    ) -> Self:
        """Return a copy with more params and tags."""
        return self.replace(params={**self.params, **(params or {})}, tags={**self.tags, **(tags or {})})


class JournalPosition(Record):
    """How far the journal is synced to MLflow.

    Attributes:
        offsets: bytes read of each file on a disk; earlier versions list an object store's parts here as well.
        parts: of an object store: how many parts of each file were read.
        steps: the last step of each metric.
    """

    file: ClassVar[str] = "shipped.json"
    remedy: ClassVar[str] = "delete the file: all points are sent again, and MLflow keeps each once"

    offsets: dict[str, int] = Field(default_factory=dict)
    parts: dict[str, int] = Field(default_factory=dict)
    steps: dict[str, int] = Field(default_factory=dict)


# -- checkpoints -----------------------------------------------------------------------------------------------


class Progress(Part):
    """How far a training is: optimizer steps, samples, metrics by MLflow's names, seconds over all attempts.

    Attributes:
        to_beat, stalled: of early stopping: the value to be improved on, and the evaluations since it was reached.
        ended_by: what ended training before its last step, besides a target: early_stopping or callback.
    """

    step: int = 0
    samples: int = 0
    best: dict[str, NullableFloat] = Field(default_factory=dict)
    metrics: dict[str, NullableFloat] = Field(default_factory=dict)
    reached_target: bool = False
    seconds: float = 0.0
    to_beat: float | None = None
    stalled: int = 0
    ended_by: str | None = None


class CheckpointState(Record):
    """The state of training besides tensors."""

    file: ClassVar[str] = "state.json"
    remedy: ClassVar[str] = "delete the checkpoint: the one before is used"

    step: int
    samples: int
    best: dict[str, NullableFloat] = Field(default_factory=dict)
    metrics: dict[str, NullableFloat] = Field(default_factory=dict)
    reached_target: bool = False
    seconds: float = 0.0
    to_beat: float | None = None
    stalled: int = 0
    ended_by: str | None = None
    attempt: int | None = None
    num_workers: int | None = None
    run_key: str | None = None
    mlflow_run_id: str | None = None


class FileDigest(Part):
    """Size in bytes and SHA-256 of a file."""

    bytes: int
    sha256: str


class Manifest(Record):
    """The files of a complete checkpoint; written last."""

    file: ClassVar[str] = "manifest.json"
    remedy: ClassVar[str] = "delete the checkpoint: the one before is used"

    files: dict[str, FileDigest]

    @model_validator(mode="before")
    @classmethod
    def _was_the_files_alone(cls, data: Any) -> Any:
        return data if not isinstance(data, dict) or "files" in data else {"files": data}


class Exploit(Part):
    """Population based training: a trial went on from another's checkpoint, at another point."""

    iteration: int
    step: int
    source: str = Field(alias="from")
    point: dict[str, JsonValue]

    model_config = ConfigDict(extra="allow", frozen=True, populate_by_name=True, serialize_by_alias=True)


class Lineage(Record):
    """Whose checkpoints a trial went on from."""

    file: ClassVar[str] = "lineage.json"
    remedy: ClassVar[str] = "delete the trial's folder: it is run again"

    entries: list[Exploit] = Field(default_factory=list)

    @model_validator(mode="before")
    @classmethod
    def _was_a_list(cls, data: Any) -> Any:
        return {"entries": data} if isinstance(data, list) else data


# -- how a training ended --------------------------------------------------------------------------------------


class Outcome(Record):
    """What rank 0 measured at the end.

    Attributes:
        seconds, attempt_seconds: of training, over all attempts and in this one.
        samples_before: samples of earlier attempts.
        shares: of `attempt_seconds`, by what they were spent on.
        rates: samples, tokens and FLOPs per second, MFU.
        peak_memory_bytes: by rank.
        confusion: [true class][predicted class] counts on `split`.
        precision_recall: precision by class, for a recall of 0 to 1 in equal steps, of a detection on `split`.
        sampled_rows, sampled_metrics: so many of the first rows of the split that a clean process measures the saved
            model on, and what was measured on them; None: it measures on all.
        selected_step: of the weights that are the result and were measured; None: the last ones.
        depends_on_workers: why the result depends on their number; None where nothing is known to make it.
    """

    file: ClassVar[str] = "outcome.json"
    remedy: ClassVar[str] = "delete the file: the same command goes on from the last checkpoint"

    ended: Ending
    progress: Progress
    steps_planned: int
    seconds: float
    attempt_seconds: float
    samples_before: int = 0
    shares: dict[str, NullableFloat] = Field(default_factory=dict)
    rates: dict[str, NullableFloat] = Field(default_factory=dict)
    peak_memory_bytes: list[int] = Field(default_factory=list)
    micro_batch_size: int | None = None
    world_size: int = 1
    device: str = "cpu"
    transport: str | None = None
    checkpoint_blocked_s: float = 0.0
    host: str | None = None
    split: str | None = None
    test_metrics: dict[str, NullableFloat] = Field(default_factory=dict)
    val_metrics: dict[str, NullableFloat] = Field(default_factory=dict)
    confusion: list[list[int]] | None = None
    precision_recall: dict[str, list[float]] | None = None
    sampled_rows: int | None = None
    sampled_metrics: dict[str, NullableFloat] = Field(default_factory=dict)
    selected_step: int | None = None
    depends_on_workers: str | None = None

    @property
    def weights_step(self) -> int:
        """The step of the weights that are the result."""
        return self.progress.step if self.selected_step is None else self.selected_step

    @property
    def metrics(self) -> dict[str, float]:
        """What was measured last, of the weights that are the result where training has ended."""
        return {**self.progress.metrics, **self.val_metrics, **self.test_metrics}

    @property
    def ended_because(self) -> str:
        """Why training ended: steps, target, early_stopping, callback, or what was asked of it from outside."""
        if self.ended != "finished":
            return self.ended
        return "target" if self.progress.reached_target else self.progress.ended_by or "steps"


class ErrorRecord(Record):
    """A worker's own exception; Ray's account of it buries the cause.

    Attributes:
        where: file and line that raised.
        exit_code: of the job that reports it.
        symptom: what it means, which only the process that raised it can see (`shoal.runs.failure_policy`).
        section, step: what the worker did.
        samples, losses: see `FailedWorker`.
    """

    file: ClassVar[str] = "error.json"
    remedy: ClassVar[str] = "delete the file: it is of an attempt that has ended"

    type: str
    message: str
    where: str = ""
    rank: int | None = 0
    host: str | None = None
    traceback: str = ""
    exit_code: int = 1
    symptom: str = ""
    section: str = ""
    step: int | None = None
    samples: list[int] = Field(default_factory=list)
    losses: list[str] = Field(default_factory=list)

    @classmethod
    def from_exception(cls, error: BaseException, rank: int = 0) -> Self:
        """Describe an exception that was raised on this host; `rank` is the worker's."""
        frames = traceback.extract_tb(error.__traceback__)
        return cls(
            type=type(error).__name__,
            message=str(error) or type(error).__name__,
            where=f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "unknown",
            rank=rank,
            host=socket.gethostname(),
            traceback="".join(traceback.format_exception(error)),
            exit_code=getattr(error, "exit_code", 1),
        )


class FailedWorker(Part):
    """A worker that failed.

    Attributes:
        section: what it did: `step`, `data`, `evaluate`, `checkpoint`, ...
        step: at which optimizer step, where that is known.
        type, message: of its exception, or of Ray's.
        where: file and line that raised.
        samples: its rows of the batch, numbered among the training rows from 0, of an exception in a step.
        losses: up to one that is not finite, summed over all workers, as hexadecimal digits of their bits.
    """

    rank: int | None = None
    host: str | None = None
    section: str = ""
    step: int | None = None
    type: str = ""
    message: str = ""
    where: str = ""
    samples: list[int] = Field(default_factory=list)
    losses: list[str] = Field(default_factory=list)


class StackGroup(Part):
    """Workers with the same stack."""

    ranks: list[int]
    stack: str


class FailureRecord(Record):
    """How an attempt of workers failed, and what followed.

    Attributes:
        kind: the class of the failure.
        is_retried: whether the workers were started again.
        message: the line that a person sees.
        root: the worker that failed by itself; null where none stands out.
        cascade: those that failed since it did.
        stacks: of the workers that hung, the rarest first.
        last_lines: that the root printed to stderr.
        failures: that count, without progress in between.
        replayed: of a loss that was not finite, whose steps are made again.
        step: the latest that a worker had begun.
        checkpoint_step: of the newest checkpoint.
        next_command: which goes on; null where it is not known.
    """

    file: ClassVar[str] = "failure.json"
    remedy: ClassVar[str] = "delete the file: it is of an attempt that has ended"

    kind: FailureKind
    is_retried: bool
    message: str
    root: FailedWorker | None = None
    cascade: list[FailedWorker] = Field(default_factory=list)
    stacks: list[StackGroup] = Field(default_factory=list)
    last_lines: list[str] = Field(default_factory=list)
    failures: int = 0
    replayed: FailedWorker | None = None
    step: int | None = None
    checkpoint_step: int | None = None
    attempt: int | None = None
    at_ms: int | None = None
    next_command: str | None = None


class HostFailure(Record):
    """A run that a host failed, which is counted against it.

    Attributes:
        run: experiment and name.
        kind, message: of the failure.
    """

    file: ClassVar[str] = "host.json"
    remedy: ClassVar[str] = "delete the file"

    host: str
    run: str
    kind: FailureKind
    message: str
    at_ms: int


class AttemptBegun(Part):
    """An attempt at a run: a submission, or workers that were started again.

    Attributes:
        why: the run was submitted, or what ended the attempt before.
        step: that it went on from; null where its workers never came so far.
    """

    at_ms: int
    why: str
    step: int | None = None


class Resize(Part):
    """Workers that were started again in another number.

    Attributes:
        at_ms: when they went on, in Unix milliseconds.
        step: that they went on from.
        before, workers: how many there were, and are.
        why: the larger group was started, or what ended the one before.
    """

    at_ms: int
    step: int
    before: int
    workers: int
    why: str


class Goodput(Part):
    """What the seconds of a run went to, from its first submission on, over all attempts.

    Attributes:
        share: of the seconds, those of steps that count.
        wall_s: all seconds.
        seconds: by class; they sum to `wall_s`.
        attempts: in order.
    """

    share: float
    wall_s: float
    seconds: dict[str, float]
    attempts: list[AttemptBegun]


# -- results ---------------------------------------------------------------------------------------------------


class Result(Record):
    """What every `result.json` says. The page docs/reference/result.md is made of these docstrings.

    Attributes:
        status: `FINISHED`, `FAILED` or `KILLED`.
        reason: why it did not finish; null if it did.
        run_name: the name of the run, in MLflow too.
        experiment_name: of MLflow.
        mlflow_run_id: null while MLflow was never reached.
        tracking_uri: of MLflow.
        runs_table: the page of MLflow that lists the runs of the experiment, best first, below the server's address.
        run_folder: the absolute path or URI of everything about the run.
    """

    file: ClassVar[str] = "result.json"
    remedy: ClassVar[str] = "delete the file: the same command writes it again"

    status: Status
    reason: str | None = None
    run_name: str
    experiment_name: str | None = None
    mlflow_run_id: str | None = None
    tracking_uri: str | None = None
    runs_table: str | None = None
    run_folder: str


class TrainResult(Result):
    """Of a training.

    Attributes:
        checkpoint: of the weights that are the result.
        metrics: `val/*` and `test/*` of the weights that are the result.
        test_loss: null without a test split.
        best: the best of each metric, and `best/step` of the best `train.early_stopping.metric`.
        model: `parameters`, those `trained`, `bytes`, `flops_per_sample` (of a forward pass), and what of
            `model.init` was `not_loaded`.
        steps: optimizer steps since the run began, over all attempts.
        samples_seen: since the run began, over all attempts.
        reached_target: whether `train.target` ended it.
        ended: why training ended: `steps`, `target`, `early_stopping` or `callback`; `interrupted`.
        stopped_early: whether `train.early_stopping.patience` ended it.
        steps_planned: after which it would have ended otherwise.
        selected_step: of the weights that are the result: with `train.select=best` `best/step`.
        seconds: of training, over all attempts, up to the last checkpoint of each.
        total_seconds: of this attempt, start-up and verification included.
        samples_per_second: of this attempt, without evaluation and checkpoints.
        tokens_per_second: where a sample is a row of tokens.
        flops_per_second: of all workers: three forward passes a sample.
        mfu: its share of the GPUs' dense peak; null where that is not known.
        peak_memory_bytes: of the worker that took most: tensors on a GPU, the process on a CPU.
        micro_batch_size: what `train.micro_batch_size` came to; null is a worker's whole part of the batch.
        world_size: workers, at the end.
        resizes: of `scale.num_workers=[min, max]`: each change of their number, with `at_ms`, the `step` that they went
            on from, how many there were `before`, how many `workers` there are since, and `why`.
        depends_on_workers: why the result depends on their number; null where nothing is known to make it.
        device: of worker 0.
        gradient_transport: `shared memory`, `gloo` or `nccl`; null without Ray.
        shares: of training time: `data`, `compute`, `gradient_sync`, `evaluate`, `checkpoint`, `tracking`.
        bottleneck: the largest share.
        checkpoint_blocked_s: seconds that training waited for a checkpoint being written.
        is_verified: whether a clean process reproduced the model's metric.
        sample: what a causal language model writes; null for others.
        attempt: from 1.
        goodput: what each second since the first submission went to, over all attempts: `share` of steps that count,
            `wall_s`, `seconds` by class, `attempts` with the reason of each.
    """

    checkpoint: str | None = None
    metrics: dict[str, NullableFloat] = Field(default_factory=dict)
    test_loss: float | None = None
    best: dict[str, NullableFloat] = Field(default_factory=dict)
    model: ModelRecord | None = None
    steps: int | None = None
    samples_seen: int | None = None
    reached_target: bool | None = None
    ended: str | None = None
    stopped_early: bool | None = None
    steps_planned: int | None = None
    selected_step: int | None = None
    seconds: float | None = None
    total_seconds: float | None = None
    samples_per_second: float | None = None
    tokens_per_second: float | None = None
    flops_per_second: float | None = None
    mfu: float | None = None
    peak_memory_bytes: int | None = None
    micro_batch_size: int | None = None
    world_size: int | None = None
    resizes: list[Resize] = Field(default_factory=list)
    depends_on_workers: str | None = None
    device: str | None = None
    gradient_transport: str | None = None
    shares: dict[str, NullableFloat] = Field(default_factory=dict)
    bottleneck: str | None = None
    checkpoint_blocked_s: float | None = None
    is_verified: bool = False
    sample: str | None = None
    attempt: int = 1
    goodput: Goodput | None = None


class TrialResult(Result):
    """Of a trial that ended.

    Attributes:
        outcome: finished, stopped, infeasible, failed, killed or reused.
        same_as: name of the trial at the same point whose result this is, where it was not trained itself.
        seconds, training_seconds: with set-up, and of training alone.
        began_s, ended_s: seconds since the sweep began.
    """

    outcome: str | None = None
    same_as: str | None = None
    params: dict[str, JsonValue] = Field(default_factory=dict)
    repeat: int = 0
    metric: str | None = None
    value: float | None = None
    metrics: dict[str, NullableFloat] = Field(default_factory=dict)
    steps: int | None = None
    samples_seen: int | None = None
    model: ModelRecord | None = None
    seconds: float | None = None
    training_seconds: float | None = None
    began_s: float | None = None
    ended_s: float | None = None
    node: str | None = None
    error: ErrorRecord | None = None


@dataclass(frozen=True, slots=True)
class TrialRow:
    """A trial as a row of its sweep's table.

    Attributes:
        status: pending, running, paused, finished, stopped, infeasible, failed, killed or reused.
        metric: the value of its last evaluation.
        started_s, ended_s: seconds since the sweep began.
        curve: (step, value) of each evaluation.
        log: URI of its error record.
        repeat: number of the seed, from 0.
        point: number of the point, which seeds share.
        flops, training_s: of the training, as far as it went.
        same_as: name of the trial at the same point whose result this is.
    """

    number: int
    name: str
    status: str
    params: dict[str, Any]
    metric: float | None
    steps: int = 0
    seconds: float = 0.0
    started_s: float | None = None
    ended_s: float | None = None
    curve: tuple[tuple[int, NullableFloat], ...] = ()
    reason: str | None = None
    node: str | None = None
    error: str | None = None
    log: str | None = None
    repeat: int = 0
    point: int = 0
    parameters: int | None = None
    flops: int | None = None
    training_s: float | None = None
    same_as: str | None = None


class BestTrial(Part):
    """The best trial of a sweep."""

    trial: str
    params: dict[str, Any]
    value: float | None
    metrics: dict[str, NullableFloat] = Field(default_factory=dict)
    model: ModelRecord | None = None
    run_folder: str
    mlflow_run_id: str | None = None
    is_verified: bool = False


class SweepResult(Result):
    """Of a sweep.

    Attributes:
        metric: what trials are compared by.
        mode: `min` or `max`: which value of it is better.
        best: `trial`, `params`, `value`, `metrics`, `model`, `run_folder`, `mlflow_run_id`, `is_verified`.
        trials: counts by status; `planned`, and `ended` of them.
        worker_hours: of all trials.
        total_seconds: of this attempt.
        is_out_of_time: whether `tune.time_budget_s` ended it.
        rows: every trial, best first.
        findings: what the report says, by name.
        width_report: which learning rate is best at each width, in text; null where these are not swept.
        scaling: the fitted law of loss and size; null with fewer than four widths.
        disk_bytes: of the sweep's folder.
        attempt: from 1.
        records_complete: when the last trial was in MLflow, in Unix seconds; None while not all of them are. The
            process that syncs the sweep writes it.
    """

    metric: str
    mode: Literal["min", "max"]
    best: BestTrial | None = None
    trials: dict[str, int] = Field(default_factory=dict)
    worker_hours: float = 0.0
    total_seconds: float = 0.0
    records_complete: float | None = None
    is_out_of_time: bool = False
    rows: list[TrialRow] = Field(default_factory=list)
    findings: dict[str, str] = Field(default_factory=dict)
    width_report: str | None = None
    scaling: dict[str, JsonValue] | None = None
    disk_bytes: int | None = None
    attempt: int = 1


class EvaluationResult(Result):
    """Of a measurement of a finished model.

    Attributes:
        model: where the model was loaded from.
        data_source: of the measured rows.
        split: which rows: `validation` or `test`, or all.
        rows: how many.
        metrics: by name, without a prefix.
        per_class: precision, recall and support by class; null where there are none.
        is_delivered: whether MLflow received all of it.
    """

    model: str
    data_source: str
    split: str
    rows: int
    metrics: dict[str, NullableFloat]
    per_class: dict[str, dict[str, NullableFloat]] | None = None
    is_delivered: bool | None = None


class PredictionResult(Result):
    """Of a batch prediction.

    Attributes:
        model: where the model was loaded from.
        model_digest: 12 hexadecimal digits that name its very files.
        data_source: of the rows.
        output: the folder with the predictions.
        rows: that were read.
        rejected: of these, how many could not be predicted: they are in `_rejected.jsonl` with the reason.
        parts: files.
        seconds: of reading, predicting and writing, by this job alone.
        is_delivered: whether MLflow received all of it.
    """

    model: str
    model_digest: str
    data_source: str
    output: str
    rows: int
    rejected: int
    parts: int
    seconds: float
    is_delivered: bool | None = None


class ServeResult(Result):
    """Of a server, once it has ended.

    Attributes:
        address: where it listened.
        models: the last version of each model, as URI, by the name of the model.
        requests: answers by HTTP status.
        rows: that were predicted.
        seconds: for which it served.
        latency_ms: percentiles of the last requests, by name.
        is_delivered: whether MLflow received all of it.
    """

    address: str
    models: dict[str, str]
    requests: dict[str, int]
    rows: int
    seconds: float
    latency_ms: dict[str, float]
    is_delivered: bool | None = None


Level = Literal["ok", "warning", "fatal"]
LEVELS: tuple[Level, ...] = get_args(Level)  # the worst last


class Finding(Part):
    """What a check found, of a cluster or of a part of it.

    Attributes:
        check: what was looked at.
        level: `ok`; `warning`: it works, and worse than it could; `fatal`: a job would fail.
        where: the host, or hosts, it is true of.
        value: what was seen.
        rule: what it should be, and why.
        remedy: what a person does about it.
    """

    check: str
    level: Level = "ok"
    where: str = ""
    value: str
    rule: str = ""
    remedy: str = ""


class DoctorResult(Result):
    """Of a check of the cluster; no run of MLflow.

    Attributes:
        findings: by check.
        nodes: that were looked at.
        seconds: that it took.
    """

    findings: list[Finding]
    nodes: list[str]
    seconds: float


class ReapedRun(Part):
    """A run that was said to be running.

    Attributes:
        run: its folder, or its name where MLflow alone says so.
        outcome: `lives`; `closed`: nothing worked on it; `unknown`: its files cannot be read.
        why: in words.
    """

    run: str
    outcome: Literal["lives", "closed", "unknown"]
    why: str


class ReapResult(Result):
    """Of a reaping; no run of MLflow.

    Attributes:
        runs: those that were said to be running.
    """

    runs: list[ReapedRun]


class LedgerEntry(Part):
    """How a version of a registered model became its champion.

    Attributes:
        at: when it was decided, in UTC.
        by: `training`: it was compared at its registration; `promote` or `rollback`: a person asked for it.
        champion: the version.
        replaced: the version before; null: there was none.
        metric: by which they were compared; null where they were not.
        value: of the version.
        replaced_value: of the version before.
        p_value: that both are equally good; null where no test was made.
        rows: that both were measured on.
        data: digest of the version's data.
        rows_digest: of the rows that were measured.
        run: the name of the promotion's run in MLflow.
    """

    at: str
    by: Literal["training", "promote", "rollback"]
    champion: str
    replaced: str | None = None
    metric: str | None = None
    value: float | None = None
    replaced_value: float | None = None
    p_value: float | None = None
    rows: int | None = None
    data: str | None = None
    rows_digest: str | None = None
    run: str | None = None


class SliceRecord(Part):
    """Two models on some of the rows: those with one value of a column, or a quarter of its numbers."""

    column: str
    value: str
    rows: int
    candidate: NullableFloat
    champion: NullableFloat
    worse_by: NullableFloat
    p_value: float | None = None


class PromotionResult(Result):
    """Of a promotion, or of a return to the champion before.

    Attributes:
        model: the registered model.
        candidate: the version that was to become champion.
        champion: the version that was champion.
        is_promoted: whether the candidate is champion now.
        outcome: `wins`, `ties` or `loses`; `rollback`.
        why: the decision in words.
        metric: that decided.
        difference: of it, candidate less champion.
        interval: that holds the difference in 95 of 100 draws of the rows; null for McNemar's test.
        p_value: two-sided: how likely so large a difference is, were both equally good.
        test: `mcnemar` or `bootstrap`.
        only_candidate_right: rows that only the candidate has right, for McNemar's test.
        only_champion_right: rows that only the champion has right.
        margin: that the candidate may be worse by, as a share of the champion's value.
        is_paired: whether both saw the same rows one by one.
        split: whose rows were measured.
        rows: how many.
        rows_digest: which.
        data: digest of the candidate's data.
        candidate_metrics: all metrics of the candidate.
        champion_metrics: all metrics of the champion.
        slices: the groups of rows on which the candidate is worst beside the champion, worst first.
        is_delivered: whether MLflow received all of it.
    """

    model: str
    candidate: str
    champion: str
    is_promoted: bool
    outcome: Literal["wins", "ties", "loses", "rollback"]
    why: str
    metric: str | None = None
    difference: float | None = None
    interval: list[float] | None = None
    p_value: float | None = None
    test: str | None = None
    only_candidate_right: int | None = None
    only_champion_right: int | None = None
    margin: float | None = None
    is_paired: bool | None = None
    split: str | None = None
    rows: int | None = None
    rows_digest: str | None = None
    data: str | None = None
    candidate_metrics: dict[str, NullableFloat] = Field(default_factory=dict)
    champion_metrics: dict[str, NullableFloat] = Field(default_factory=dict)
    slices: list[SliceRecord] = Field(default_factory=list)
    is_delivered: bool | None = None


class ExportedFile(Part):
    """One format of an exported model.

    Attributes:
        file: that a library loads, below the run folder.
        bytes: of all files of the format.
        largest_difference: from the model, on any row in any batch.
        opset: of ONNX, by domain; null of other formats.
    """

    file: str
    bytes: int
    largest_difference: float
    opset: dict[str, int] | None = None


class ExportResult(Result):
    """Of an export of a finished model.

    Attributes:
        model: where the model was loaded from.
        data_source: of the rows that were compared.
        split: which rows: `test` or `validation`, `all`, or the `golden` ones that the model carries.
        rows: how many were compared, in batches of each size.
        batches: these sizes.
        tolerance: the largest difference that is allowed.
        formats: what was written, by format.
        is_delivered: whether MLflow received all of it.
    """

    model: str
    data_source: str
    split: str
    rows: int
    batches: list[int]
    tolerance: float
    formats: dict[str, ExportedFile]
    is_delivered: bool | None = None


class ExplanationCheck(Part):
    """What an explanation must pass to be believed.

    Attributes:
        name: `completeness`, `randomised_weights` or `learned`.
        value: the relative error, the rank correlation, or the loss by that of a constant answer; null if undefined.
        limit: the largest value that passes.
        is_passed: whether it is within the limit.
    """

    name: str
    value: NullableFloat
    limit: float
    is_passed: bool


class ColumnImportance(Part):
    """How much a column, pixel or token matters, with bounds of 95% intervals over the rows.

    Attributes:
        name: of the column.
        attribution, attribution_low, attribution_high: mean absolute attribution.
        permutation, permutation_low, permutation_high: the rise of the loss when it is shuffled; null if not measured.
    """

    name: str
    attribution: NullableFloat
    attribution_low: NullableFloat
    attribution_high: NullableFloat
    permutation: NullableFloat | None = None
    permutation_low: NullableFloat | None = None
    permutation_high: NullableFloat | None = None


class ExplainedRow(Part):
    """The explanation of one row.

    Attributes:
        row: its number among the rows that were read, from 0.
        why: `chosen`, `worst` or `random`.
        target: the class that is explained, or the label that is a number.
        predicted: what the model predicts.
        label: what is true.
        loss: of the row.
        attributions: by name, the largest first.
        checks: of this row.
    """

    row: int
    why: str
    target: str
    predicted: str
    label: str
    loss: NullableFloat
    attributions: dict[str, NullableFloat]
    checks: list[ExplanationCheck]


class WrittenToken(Part):
    """A token that a language model wrote.

    Attributes:
        token: its text.
        probability: of it.
        alternatives: probabilities of the likeliest others.
    """

    token: str
    probability: float
    alternatives: dict[str, float]


class WrittenText(Part):
    """What a language model wrote after the beginning of a row, or at its masked tokens.

    Attributes:
        row: its number among the rows that were read, from 0.
        why: `chosen`, `worst` or `random`.
        loss: the mean of the row's tokens.
        prompt: the beginning of the row; of a masked model the row, with [MASK] where a token is predicted.
        tokens: the likeliest ones after it, or at each [MASK].
    """

    row: int
    why: str
    loss: NullableFloat
    prompt: str
    tokens: list[WrittenToken]


class ExplainResult(Result):
    """Of an explanation of a finished model.

    Attributes:
        model: where the model was loaded from.
        kind: what is explained: `table`, `image`, `text` or `language`.
        method: of attribution; null of a language model.
        data_source: of the explained rows.
        split: which rows: `test` or `validation`, or `all`.
        rows: how many were read.
        page: the HTML page, below the run folder.
        is_passed: whether all checks of all rows together passed.
        checks: of all rows together.
        importance: of columns or tokens, the largest first; of images none.
        explained: single rows.
        written: what a language model wrote after the beginnings of rows.
        areas: under the deletion and insertion curves, and under those of random orders.
        is_delivered: whether MLflow received all of it.
    """

    model: str
    kind: str
    method: str | None = None
    data_source: str
    split: str
    rows: int
    page: str
    is_passed: bool
    checks: list[ExplanationCheck]
    importance: list[ColumnImportance]
    explained: list[ExplainedRow]
    written: list[WrittenText] = []
    areas: dict[str, NullableFloat]
    is_delivered: bool | None = None


class LatencyRecord(Part):
    """How long a call takes on one thread: medians over rounds in which the original and the variant took turns."""

    p50_ms: float
    p99_ms: float


class MeasuredModel(Part):
    """A model as it was measured, loaded from its files.

    Attributes:
        runtime: what ran it, `torch` or `onnxruntime`.
        metrics: on the held-out rows, by name.
        bytes: of the file of its weights, model.safetensors or model.onnx.
        parameters: that the model has.
        zeros: of these that are zero.
        latency: by the rows of a call.
        flops: of one row, forward; a multiply-add is 2, of whatever numbers.
        memory_bytes: that torch holds for a call of 64 rows: weights, and the activations at their most; null of
            ONNX Runtime, which does not say.
    """

    runtime: str
    metrics: dict[str, NullableFloat]
    bytes: int
    parameters: int
    zeros: int
    latency: dict[str, LatencyRecord]
    flops: int | None = None
    memory_bytes: int | None = None


class CompressedVariant(Part):
    """A compressed model beside the one that it was made of.

    Attributes:
        method: how it was made.
        original, variant: as measured, by the same runtime.
        flips: share of rows whose predicted class is another one; null where there are no classes.
        attribution_agreement: rank correlation of gradient x input with the original's, over some rows; null where
            there are no gradients, as of 8-bit integers.
        steps: of fine-tuning.
        isa: what the CPU that it was measured on has for 8-bit products: `avx512_vnni`, `avx_vnni` or `none`.
        file: of its weights, below its run folder.
        rejected: what speaks against it, so that it is not registered; null: nothing.
        run_folder: of the variant's own run.
    """

    method: str
    original: MeasuredModel
    variant: MeasuredModel
    flips: float | None
    steps: int
    isa: str
    file: str
    rejected: str | None
    run_folder: str
    attribution_agreement: float | None = None

    def speedup(self, rows: str) -> float:
        """Return how many times faster than the original a call of so many rows is, by p50."""
        return self.original.latency[rows].p50_ms / self.variant.latency[rows].p50_ms


class VariantState(Record):
    """How far a variant of a compressed model is, so that the same command goes on with it.

    Attributes:
        job: digest of all that the variant depends on: model, rows, config.
        compressed: what was found; null: it is not finished.
    """

    file: ClassVar[str] = "variant.json"
    remedy: ClassVar[str] = "delete the run folder: the variant is made again"

    job: str
    compressed: CompressedVariant | None = None


class VariantResult(Result):
    """Of one variant of a compressed model, which is a run of its own.

    Attributes:
        model: that it was made of.
        parent: the run folder of the job.
        data_source: of the rows that it was measured on.
        split: which rows: `test` or `validation`.
        rows: how many.
        metric: that is compared.
        compressed: what was found.
        is_delivered: whether MLflow received all of it.
    """

    model: str
    parent: str
    data_source: str
    split: str
    rows: int
    metric: str
    compressed: CompressedVariant
    is_delivered: bool | None = None


class CompressionResult(Result):
    """Of the compression of a finished model.

    Attributes:
        model: where the model was loaded from.
        data_source: of the rows that were measured.
        split: which rows: `test` or `validation`.
        rows: how many.
        metric: that is compared.
        max_loss_of: how much worse it may become.
        variants: by name.
        fits: what variants had to fit into, as `compress.fits`; null: into nothing.
        picked: the best of those that fit; null: none does.
        is_delivered: whether MLflow received all of it.
    """

    model: str
    data_source: str
    split: str
    rows: int
    metric: str
    max_loss_of: float
    variants: dict[str, CompressedVariant]
    fits: str | None = None
    picked: str | None = None
    is_delivered: bool | None = None


class CoordinateCheckResult(Result):
    """Of a coordinate check; exponents that are not finite are null.

    Attributes:
        passes: whether no exponent is larger than the tolerance.
        parametrization: `mup` or `standard`.
        widths: that were compared.
        steps: optimizer steps at each.
        seeds: models of each width.
        tolerance: largest |k| of changes that go as width^k which passes.
        worst_module: whose exponent is largest.
        worst_exponent: its value.
        exponents: by module.
        is_delivered: whether MLflow received all of it.
    """

    passes: bool
    parametrization: str
    widths: list[int]
    steps: int
    seeds: int
    tolerance: float
    worst_module: str
    worst_exponent: float | None
    exponents: dict[str, float | None]
    is_delivered: bool | None = None


class Comparison(Part):
    """The best point of a sweep at the target width, beside the transferred one; metrics of several seeds are means.

    Attributes:
        gap: how much worse the transferred value is, in the metric's unit.
    """

    params: dict[str, JsonValue]
    value: NullableFloat
    transferred_value: NullableFloat
    gap: NullableFloat
    width_report: str | None = None
    run_folder: str


class CostRecord(Part):
    """Floating-point operations, and seconds of training."""

    flops: float
    seconds: float


class TransferResult(Result):
    """Of a transfer of hyperparameters to another width.

    Attributes:
        metric: what trials are compared by.
        mode: `min` or `max`.
        base_width: of the sweep.
        target_width: of the training that follows.
        trials: of the sweep.
        params: the best point.
        base_value: its metric at the base width.
        target_value: its metric at the target width.
        metrics: of the model at the target width.
        comparison: null without `--verify`; else `params` and `value` of the best point there, `transferred_value`,
            `gap` (means where there are several seeds) and `width_report`.
        cost: FLOPs and seconds of `search`, `training`, `whole` and `direct_search`.
        is_measured: whether seconds at the target width were measured, not predicted.
        flops_factor: how many times the FLOPs a sweep at the target width takes.
        seconds_factor: the same of seconds.
        sweep_folder: of the sweep.
        train_folder: of the training at the target width.
        is_delivered: whether MLflow received all of it.
    """

    metric: str
    mode: Literal["min", "max"]
    base_width: int
    target_width: int
    trials: int
    params: dict[str, JsonValue]
    base_value: float | None
    target_value: float | None
    metrics: dict[str, NullableFloat]
    comparison: Comparison | None = None
    cost: dict[str, CostRecord]
    is_measured: bool
    flops_factor: float | None
    seconds_factor: float | None
    sweep_folder: str
    train_folder: str
    is_delivered: bool | None = None
