"""THE LOOP: forward, backward, clip, update, until the preset epochs, steps or metric.

Every collaborator is an argument. It knows no Ray and no MLflow; where the data lies, how gradients are added
up, where metrics and checkpoints go, is theirs to know.
"""

import contextlib
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from shoal.config.schema import Section
from shoal.data.loader import Batch, Shard
from shoal.data.sampler import VALIDATION
from shoal.distributed.process_group import Collective
from shoal.errors import DivergedError
from shoal.tasks.base import Task
from shoal.tasks.metrics import reaches, update_best
from shoal.training.accumulation import FullBatch
from shoal.training.checkpoint.contents import TrainingProgress
from shoal.training.ema import EMA
from shoal.training.evaluation import evaluate
from shoal.training.mixed_precision import Precision, autocast

# How a training ends or is left: at its end, asked to stop by a person, or by who compares it with others.
Decision = Literal["continue", "stop", "pause"]
Ending = Literal["finished", "interrupted", "stop", "pause"]

PUBLISH_S = 0.25
MAX_UNPUBLISHED = 500


class TrainConfig(Section):
    epochs: int = Field(
        20, ge=1, description="passes over the training rows, unless max_steps ends it before"
    )
    max_steps: int | None = Field(None, ge=1, description="optimiser steps after which training ends")
    target: dict[str, float] = Field(
        default_factory=dict, description="stop as soon as these are reached, e.g. {val/accuracy: 0.97}"
    )
    evaluate_every_steps: int | None = Field(None, ge=1, description="null: every epoch")
    micro_batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] | None = Field(
        None, description="samples a worker runs at a time, for less memory; auto: fewer whenever it runs out"
    )
    precision: Precision = Field("fp32", description="of forward and backward; weights stay fp32")
    activation_checkpointing: bool = Field(
        False, description="compute the activations of model.blocks again in backward, for less memory"
    )
    compile: bool = Field(False, description="torch.compile the model")
    ema: float | None = Field(
        None, gt=0, lt=1, description="decay of a moving average of the weights, which is the model then"
    )


class MetricLogger(Protocol):
    """Where metric points go; all but rank 0's discard them."""

    def log(self, step: int, metrics: dict[str, float], at_s: float | None = None) -> None: ...

    def flush(self) -> None: ...


@dataclass(frozen=True)
class TrainingLoop:
    """The collaborators of one worker's training."""

    config: TrainConfig
    model: nn.Module
    forward: nn.Module  # the model, with its gradients added up over the workers in backward
    optimizer: torch.optim.Optimizer
    learning_rate: Callable[[int], float]
    clip_norm: float | None
    task: Task
    shard: Shard
    collective: Collective
    metric_log: MetricLogger
    save: Callable[[TrainingProgress, bool], None]  # now, or (False) together with the next one
    is_stop_requested: Callable[[], bool]
    is_save_due: Callable[[], bool] = lambda: False  # asked on rank 0, unless save_every says it
    decide: Callable[[TrainingProgress], Decision] = lambda progress: (
        "continue"
    )  # asked after each evaluation but the last
    save_every: int | None = None
    log_every: int = 1
    has_validation: bool = True
    accumulation: FullBatch = field(default_factory=FullBatch)
    scaler: GradScaler = field(default_factory=lambda: GradScaler(enabled=False))
    ema: EMA | None = None
    after_step: Callable[[], None] = lambda: None


@dataclass
class Clock:
    """Seconds by what they were spent on."""

    spent: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    @contextlib.contextmanager
    def on(self, name: str) -> Iterator[None]:
        since = time.perf_counter()
        yield
        self.spent[name] += time.perf_counter() - since


def total_steps(config: TrainConfig, steps_per_epoch: int) -> int:
    """Return the step at which training ends if no target is reached before."""
    return min(config.epochs * steps_per_epoch, config.max_steps or 2**62)


@dataclass(frozen=True)
class ControlFlags:
    """What the workers agree on whenever they meet: whether any was asked to stop, whether to save."""

    stop: bool
    save: bool


def train(job: TrainingLoop, progress: TrainingProgress, clock: Clock) -> Ending:
    """Train from where `progress` stands, updating it; return how it ended, after a checkpoint.

    Raises:
        DivergedError: the loss is not finite.
    """
    per_epoch = job.shard.lanes.steps
    last = total_steps(job.config, per_epoch)
    losses = PendingLosses(job, clock, progress.step)
    job.forward.train()
    while progress.step < last and not progress.reached_target:
        epoch, number = divmod(progress.step, per_epoch)
        for batch in _timed(job.shard.batches(epoch, number), clock):
            losses.add(update(job, batch, progress.step, clock), batch.count)
            job.after_step()
            progress.step += 1
            progress.samples += batch.count
            is_last = progress.step == last
            evaluates = is_last or progress.step % (job.config.evaluate_every_steps or per_epoch) == 0
            saves = is_last or (job.save_every is not None and progress.step % job.save_every == 0)
            if not (evaluates or saves or losses.are_due(progress.step)):
                continue
            flags = losses.publish(progress)
            is_best = evaluates and job.has_validation and _evaluate(job, progress, clock)
            has_ended = is_last or progress.reached_target
            decision = job.decide(progress) if evaluates and not (has_ended or flags.stop) else "continue"
            saves |= flags.stop or flags.save or has_ended or decision != "continue"
            if saves or is_best:
                with clock.on("checkpoint"):
                    job.metric_log.flush()
                    job.save(progress, saves)
            if has_ended:
                break
            if flags.stop:
                return "interrupted"
            if decision != "continue":
                return decision
    return "finished"


def update(job: TrainingLoop, batch: Batch, step: int, clock: Clock) -> Tensor:
    """Make one optimiser step and return this worker's sum of losses, still on its device."""
    since, waited = time.perf_counter(), job.collective.waited_s
    for group in job.optimizer.param_groups:
        group["lr"] = job.learning_rate(step) * group.get("lr_scale", 1.0)
    loss = job.accumulation.run(batch, lambda micro_batch: _backward(job, micro_batch))
    job.collective.after_backward()
    job.scaler.unscale_(job.optimizer)
    if job.clip_norm is not None:
        nn.utils.clip_grad_norm_(job.model.parameters(), job.clip_norm)
    job.scaler.step(job.optimizer)
    job.scaler.update()
    _drop_gradients(job.optimizer)
    if job.ema:
        job.ema.update(step)
    waited = job.collective.waited_s - waited
    clock.spent["gradient_sync"] += waited
    clock.spent["compute"] += time.perf_counter() - since - waited
    return loss


def _backward(job: TrainingLoop, micro_batch: Batch) -> Tensor:
    """Add a piece's gradient to what is there; return its sum of losses."""
    with autocast(job.config.precision, micro_batch.inputs.device.type):
        outputs = job.forward(micro_batch.inputs)
    loss = job.task.loss(outputs, micro_batch)
    if micro_batch.is_filler:
        loss = loss * 0.0
    # Gradients are summed over workers: dividing by the global count makes the sum the mean over the batch.
    loss.backward(job.scaler.scale(torch.full_like(loss, 1.0 / micro_batch.count)))  # type: ignore[no-untyped-call]
    return loss.detach()


def evaluate_split(job: TrainingLoop, split: str) -> Tensor:
    """Evaluate, on a split, the weights that the run is for: the averaged ones where an average is kept."""
    with job.ema.in_model() if job.ema else contextlib.nullcontext():
        return evaluate(job.model, job.task, job.shard, split, job.collective, job.accumulation.size)


class PendingLosses:
    """Loss sums that wait to be added up over the workers: together, a few times a second, not step by step."""

    def __init__(self, job: TrainingLoop, clock: Clock, step: int) -> None:
        self._job, self._clock = job, clock
        self._waiting: list[tuple[Tensor, int, float]] = []
        self._due = step + 1
        self._rate = Rate()

    def add(self, loss_sum: Tensor, count: int) -> None:
        self._waiting.append((loss_sum, count, time.time()))

    def are_due(self, step: int) -> bool:
        return step >= self._due

    def publish(self, progress: TrainingProgress) -> ControlFlags:
        """Record the mean loss of every waiting step; return what the workers agree on.

        Raises:
            DivergedError: one of them is not finite.
        """
        job = self._job
        with self._clock.on("tracking"):
            losses = torch.stack([loss.double() for loss, _, _ in self._waiting])
            flags_tensor = torch.tensor(self._control_flags(), dtype=torch.float64, device=losses.device)
            *sums, stop, save, interval = job.collective.all_reduce(
                torch.cat([losses, flags_tensor])
            ).tolist()
            first = progress.step - len(sums) + 1
            for step, total, (_, count, at_s) in zip(
                range(first, progress.step + 1), sums, self._waiting, strict=True
            ):
                if not math.isfinite(total):
                    job.metric_log.flush()
                    raise DivergedError(
                        f"train/loss is {total} at step {step}: lower optim.lr (now {job.learning_rate(step - 1):g}), "
                        "set optim.clip_norm, or look for extreme values in the data"
                    )
                if step % job.log_every == 0:
                    job.metric_log.log(step, {"train/loss": total / count}, at_s)
            job.metric_log.flush()
            self._waiting.clear()
            self._due = progress.step + int(interval)
        return ControlFlags(stop > 0, save > 0)

    def _control_flags(self) -> tuple[float, float, float]:
        """What travels with the losses: a wish to stop, and rank 0's to save and of when to meet again."""
        job = self._job
        stop = float(job.is_stop_requested())
        if job.collective.rank != 0:
            return stop, 0.0, 0.0
        saves = job.save_every is None and job.is_save_due()
        return stop, float(saves), float(self._rate.steps_per(PUBLISH_S, len(self._waiting)))


class Rate:
    """How many steps fit into a time, from how long the last ones took."""

    def __init__(self) -> None:
        self._since: float | None = None

    def steps_per(self, seconds: float, steps: int) -> int:
        now = time.perf_counter()
        since, self._since = self._since, now
        if since is None:
            return 1
        return max(1, min(MAX_UNPUBLISHED, int(seconds * steps / max(now - since, 1e-9))))


def _evaluate(job: TrainingLoop, progress: TrainingProgress, clock: Clock) -> bool:
    """Evaluate on the validation split, record, and return whether the loss is the best so far."""
    with clock.on("evaluate"):
        sums = evaluate_split(job, VALIDATION)
    metrics = {f"val/{name}": value for name, value in job.task.metrics(sums).items()}
    progress.metrics = metrics
    earlier = progress.best
    progress.best = update_best(earlier, metrics, progress.step)
    found = {name: value for name, value in progress.best.items() if earlier.get(name) != value}
    wanted = job.config.target
    progress.reached_target = bool(wanted) and all(
        reaches(name, metrics[name], target) for name, target in wanted.items()
    )
    job.metric_log.log(progress.step, metrics | found)
    return progress.best.get("best/step") == progress.step


def _drop_gradients(optimizer: torch.optim.Optimizer) -> None:
    """As zero_grad, without the profiler's mark around it: 15 us of a small model's step of 420."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def _timed(batches: Iterator[Batch], clock: Clock) -> Iterator[Batch]:
    while True:
        since = time.perf_counter()  # a context manager would take 8 us a step
        batch = next(batches, None)
        clock.spent["data"] += time.perf_counter() - since
        if batch is None:
            return
        yield batch
