"""THE LOOP: forward, backward, clip, update, until the preset epochs, steps or metric.

`train` steps through the batches, `update` makes one optimizer step. Every collaborator is an argument
(`TrainingLoop`, which `shoal.training.assemble` makes from a config, and a run's `Callbacks`). It knows no Ray and no
MLflow, and not where the data lies, how gradients are reduced or where metrics and checkpoints go.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal, Protocol

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.autograd.graph import get_gradient_edge

from shoal.data.loader import Batch, Shard
from shoal.data.sampler import VALIDATION
from shoal.data.tree import clone, first_tensor
from shoal.devices import wide
from shoal.distributed.process_group import Collective
from shoal.errors import DivergedError
from shoal.models.call import call_model
from shoal.models.row_draws import RowsOfBatch
from shoal.storage.records import Ending
from shoal.tasks.accumulator import Accumulator
from shoal.tasks.base import Task
from shoal.tasks.float64 import where_float64_is
from shoal.tasks.metrics import reaches, update_best
from shoal.tasks.objective import ObjectiveConfig
from shoal.training.accumulation import Accumulation
from shoal.training.checkpoint.contents import TrainingProgress
from shoal.training.clock import Clock, Rate
from shoal.training.dependence import Dependence
from shoal.training.divergence import COMPARED, diverged
from shoal.training.early_stopping import EarlyStoppingConfig, note_evaluation
from shoal.training.ema import EMA
from shoal.training.evaluation import RowLimit, evaluate
from shoal.training.mixed_precision import Precision, autocast
from shoal.training.user_callbacks import Moments, UserCallbacks

# What a scheduler that compares trials decides at an evaluation.
Decision = Literal["continue", "stop", "pause"]

PUBLISH_S = 0.25


class TrainConfig(ObjectiveConfig):
    epochs: int = Field(
        20, ge=1, description="passes over the training rows, unless max_steps ends it before"
    )
    max_steps: int | None = Field(None, ge=1, description="optimizer steps after which training ends")
    target: dict[str, float] = Field(
        default_factory=dict, description="stop as soon as these are reached, e.g. {val/accuracy: 0.97}"
    )
    evaluate_every_steps: int | None = Field(None, ge=1, description="null: every epoch")
    micro_batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] | None = Field(
        None, description="samples a worker runs at a time, for less memory; auto: fewer whenever it runs out"
    )
    precision: Precision = Field("fp32", description="of forward and backward; weights stay fp32")
    evaluate_precision: Precision = Field(
        "fp32", description="of evaluation while training; the final one, which is verified, is in fp32"
    )
    activation_checkpointing: bool = Field(
        False, description="compute the activations of model.blocks again in backward, for less memory"
    )
    compile: bool = Field(False, description="torch.compile the model")
    ema: float | None = Field(
        None, gt=0, lt=1, description="decay of a moving average of the weights, which is the model then"
    )
    early_stopping: EarlyStoppingConfig = Field(default_factory=EarlyStoppingConfig)
    select: Literal["best", "last"] = Field(
        "best",
        description="which weights are the result, measured, saved and registered: those with the best "
        "train.early_stopping.metric, where there is a validation split, or the last ones",
    )
    callbacks: list[str] = Field(
        default_factory=list,
        description="package.module:Callback with any of on_train_begin, on_step_end, on_epoch_end, on_evaluate_end "
        "and on_train_end, or a function of (context, metrics), which is called after each evaluation",
    )


class MetricLogger(Protocol):
    """Where metric points go; all but rank 0's discard them."""

    def log(self, step: int, metrics: dict[str, float], at_s: float | None = None) -> None: ...

    def flush(self) -> None: ...


@dataclass(frozen=True)
class TrainingLoop:
    """What one worker needs to make optimizer steps and to evaluate; `shoal.training.assemble` makes it.

    Attributes:
        forward: the model, wrapped so that backward sums its gradients over the workers.
        learning_rate: of an optimizer step, counted from 0.
        clip_norm: largest norm of the whole gradient.
        shard: this worker's rows, as the task sees them.
        ema: None where the weights themselves are the model.
        dependence: what makes the result depend on the number of workers.
        seed: of dropout.
        has_validation: whether there is a validation split to evaluate on.
        row_limit: the most rows that evaluation could hold so far.
        user_callbacks: that the config names.
    """

    config: TrainConfig
    model: nn.Module
    forward: nn.Module
    optimizer: torch.optim.Optimizer
    learning_rate: Callable[[int], float]
    clip_norm: float | None
    task: Task
    shard: Shard
    collective: Collective
    accumulation: Accumulation
    scaler: GradScaler
    ema: EMA | None
    dependence: Dependence
    seed: int = 0
    has_validation: bool = True
    row_limit: RowLimit = field(default_factory=RowLimit)
    user_callbacks: UserCallbacks = field(default_factory=UserCallbacks)

    @property
    def total_steps(self) -> int:
        """The step at which training ends if no target is reached before."""
        return total_steps(self.config, self.shard.lanes.steps)


@dataclass(frozen=True)
class Callbacks:
    """What a run attaches to its training loop.

    Attributes:
        metric_log: where metric points go.
        save: takes a checkpoint, at once (True) or to be written together with the next one (False).
        is_stop_requested: asked on every worker; one that says so stops all.
        is_save_due: asked on rank 0, unless `save_every` is set.
        decide: asked on every worker after each evaluation but the last.
        after_step: called after each optimizer step.
        save_every: steps between checkpoints.
        log_every: steps between points of train/loss.
    """

    metric_log: MetricLogger
    save: Callable[[TrainingProgress, bool], None] = lambda progress, is_due: None
    is_stop_requested: Callable[[], bool] = lambda: False
    is_save_due: Callable[[], bool] = lambda: False
    decide: Callable[[TrainingProgress], Decision] = lambda progress: "continue"
    after_step: Callable[[], None] = lambda: None
    save_every: int | None = None
    log_every: int = 1


def total_steps(config: TrainConfig, steps_per_epoch: int) -> int:
    """Return the step at which training ends if no target is reached before."""
    return min(config.epochs * steps_per_epoch, config.max_steps or 2**62)


@dataclass(frozen=True)
class ControlFlags:
    """What the workers agree on whenever they reduce losses: whether to stop, whether to save."""

    stop: bool
    save: bool


def train(loop: TrainingLoop, callbacks: Callbacks, progress: TrainingProgress, clock: Clock) -> Ending:
    """Train from `progress` on, updating it; return how training ended, after a checkpoint.

    Raises:
        DivergedError: the loss is not finite.
        UserError: a user's callback raised.
    """
    per_epoch, last = loop.shard.lanes.steps, loop.total_steps
    losses = PendingLosses(loop, callbacks, clock, progress.step)
    moment = Moments(loop.user_callbacks, loop, progress, per_epoch, callbacks.metric_log.log, clock)
    loop.forward.train()
    if progress.step < last and not progress.has_ended:
        moment("on_train_begin")
    while progress.step < last and not progress.has_ended:
        epoch, number = divmod(progress.step, per_epoch)
        for batch in _timed(loop.shard.batches(epoch, number), clock):
            losses.add(update(loop, batch, progress.step, clock), batch.divisor)
            callbacks.after_step()
            progress.step += 1
            progress.samples += batch.count
            is_last = moment("on_step_end") or progress.step == last
            ends_epoch = progress.step % per_epoch == 0
            evaluates = is_last or progress.step % (loop.config.evaluate_every_steps or per_epoch) == 0
            saves = is_last or (
                callbacks.save_every is not None and progress.step % callbacks.save_every == 0
            )
            calls = ends_epoch and moment.has("on_epoch_end")
            if not (evaluates or saves or calls or losses.are_due(progress.step)):
                continue
            flags = losses.publish(progress)
            is_best = evaluates and _evaluate(loop, callbacks, progress, clock, moment)
            if calls and moment("on_epoch_end") and not evaluates:
                is_best = _evaluate(loop, callbacks, progress, clock, moment)  # how it ended
            has_ended = is_last or progress.has_ended
            asks = evaluates and not (has_ended or flags.stop)
            decision = callbacks.decide(progress) if asks else "continue"
            if has_ended or decision == "stop":
                moment("on_train_end")
            saves |= flags.stop or flags.save or has_ended or decision != "continue"
            if saves or is_best:
                with clock.on("checkpoint"):
                    callbacks.metric_log.flush()
                    callbacks.save(progress, saves)
            if has_ended:
                break
            if flags.stop:
                return "interrupted"
            if decision != "continue":
                return decision
    return "finished"


def update(loop: TrainingLoop, batch: Batch, step: int, clock: Clock) -> Tensor:
    """Make one optimizer step; return this worker's sum of losses, a scalar still on its device."""
    since, waited = clock.enter_step(step, batch.count), loop.collective.waited_s
    for group in loop.optimizer.param_groups:
        group["lr"] = loop.learning_rate(step) * group.get("lr_scale", 1.0)
    loss = loop.accumulation.run(batch, lambda micro_batch: _backward(loop, micro_batch, step))
    loop.collective.after_backward(loop.forward)
    loop.scaler.unscale_(loop.optimizer)
    if loop.clip_norm is not None:
        nn.utils.clip_grad_norm_(loop.model.parameters(), loop.clip_norm)
    loop.scaler.step(loop.optimizer)
    loop.scaler.update()
    _drop_gradients(loop.optimizer)
    if loop.ema:
        loop.ema.update(step)
    waited = loop.collective.waited_s - waited
    clock.spent["gradient_sync"] += waited
    clock.spent["compute"] += time.perf_counter() - since - waited
    return loss


def _backward(loop: TrainingLoop, micro_batch: Batch, step: int) -> Tensor:
    """Add a micro-batch's gradient to those of the parameters; return its sum of losses."""
    dependence = loop.dependence
    # A model may write on its inputs: a filler's are a stored row.
    inputs = clone(micro_batch.inputs) if micro_batch.is_filler else micro_batch.inputs
    # In backward activations may be computed again.
    with rows_of(micro_batch, step, loop.seed, loop.collective), dependence.row_noise():
        with autocast(loop.config.precision, first_tensor(inputs).device.type):
            outputs = (
                call_model(loop.forward, inputs, loop.model)
                if dependence.is_watched
                else dependence.watch(lambda: call_model(loop.forward, inputs, loop.model))
            )
        loss = loop.task.loss(*where_float64_is(outputs, micro_batch))
        if micro_batch.is_filler:
            loss = loss * 0.0
        loss = loop.collective.before_backward(loop.forward, loss)
        # Gradients are summed over workers: dividing by the global divisor makes the sum the mean over the batch.
        # Not as the gradient that backward receives: to compare shapes, torch would import sympy in the first step.
        scaled = loop.scaler.scale(loss * (1.0 / micro_batch.divisor))
        # Of the edge, not the tensor: that would leave the mode in which activations computed again draw by row.
        torch.autograd.backward(get_gradient_edge(scaled))
    return loss.detach()


def rows_of(batch: Batch, step: int, seed: int, collective: Collective) -> RowsOfBatch:
    """Announce a worker's rows: its row i is in lane `data_rank + i * data_size` (`shoal.data.sampler`)."""
    first = collective.data_rank + batch.first * collective.data_size
    some = first_tensor(batch.inputs)
    return RowsOfBatch(seed, step, first, collective.data_size, len(some), some.device, batch.is_filler)


def evaluate_split(
    loop: TrainingLoop, split: str, precision: Precision = "fp32", first: int | None = None
) -> Accumulator:
    """Return what was accumulated over a split, or its first rows, with the EMA of the weights where one is kept."""
    rows = loop.task.held_out_rows.at_a_time(loop.accumulation.size or loop.shard.lanes.largest_part)
    with loop.ema.in_model() if loop.ema else contextlib.nullcontext():
        return evaluate(
            loop.model, loop.task, loop.shard, split, loop.collective, rows, loop.row_limit, precision, first
        )


class PendingLosses:
    """Loss sums that wait to be reduced over the workers: together, a few times a second, not step by step."""

    def __init__(self, loop: TrainingLoop, callbacks: Callbacks, clock: Clock, step: int) -> None:
        self._loop, self._callbacks, self._clock = loop, callbacks, clock
        self._waiting: list[tuple[Tensor, float, float]] = []  # loss sum, divisor, Unix seconds
        self._logged: list[float] = []  # the last sums over all workers
        self._due = step + 1
        self._rate = Rate()

    def add(self, loss_sum: Tensor, divisor: float) -> None:
        self._waiting.append((loss_sum, divisor, time.time()))

    def are_due(self, step: int) -> bool:
        return step >= self._due

    def publish(self, progress: TrainingProgress) -> ControlFlags:
        """Log the mean loss of every waiting step; return what the workers agree on.

        Raises:
            DivergedError: one of the losses is not finite.
        """
        with self._clock.on("tracking"):
            losses = wide(torch.stack([loss for loss, _, _ in self._waiting]))
            flags = torch.tensor(self._control_flags(), dtype=torch.float64, device=losses.device)
            agreed = torch.cat([losses, flags])
            *sums, stop, save, interval = self._loop.collective.all_reduce(agreed).tolist()
            self._log(progress.step - len(sums) + 1, sums)
            self._waiting.clear()
            self._due = progress.step + int(interval)
        return ControlFlags(stop > 0, save > 0)

    def _log(self, first: int, sums: list[float]) -> None:
        """Log the mean losses of the steps from `first` on."""
        metric_log, log_every = self._callbacks.metric_log, self._callbacks.log_every
        for step, (total, (own, divisor, at_s)) in enumerate(zip(sums, self._waiting, strict=True), first):
            if not math.isfinite(total):
                metric_log.flush()
                raise self._diverged(step, float(own), [*self._logged, *sums[: step - first + 1]])
            if step % log_every == 0:
                metric_log.log(step, {"train/loss": total / divisor}, at_s)
        metric_log.flush()
        self._clock.finite_step, self._logged = first + len(sums) - 1, [*self._logged, *sums][-COMPARED:]

    def _diverged(self, step: int, own: float, totals: list[float]) -> DivergedError:
        loop = self._loop
        return diverged(loop.collective, loop.shard.lanes, step, own, totals, loop.learning_rate(step - 1))

    def _control_flags(self) -> tuple[float, float, float]:
        """What travels with the losses: a stop request; from rank 0 whether to save, and steps to the next time."""
        callbacks = self._callbacks
        stop = float(callbacks.is_stop_requested())
        if self._loop.collective.rank != 0:
            return stop, 0.0, 0.0
        saves = callbacks.save_every is None and callbacks.is_save_due()
        return stop, float(saves), float(self._rate.steps_per(PUBLISH_S, len(self._waiting)))


def _evaluate(
    loop: TrainingLoop, callbacks: Callbacks, progress: TrainingProgress, clock: Clock, moment: Moments
) -> bool:
    """Evaluate on the validation split, log the metrics, and return whether it is the best so far."""
    if not loop.has_validation:
        return False
    with clock.on("evaluate"):
        found = evaluate_split(loop, VALIDATION, loop.config.evaluate_precision).results()
    metrics = {f"val/{name}": value for name, value in found.items()}
    progress.metrics = metrics
    earlier = progress.best
    selects = loop.config.early_stopping.metric
    progress.best = update_best(earlier, metrics, progress.step, loop.task.directions, selects)
    improved = {name: value for name, value in progress.best.items() if earlier.get(name) != value}
    targets = loop.config.target
    progress.reached_target = bool(targets) and all(
        reaches(name, metrics[name], target, loop.task.directions) for name, target in targets.items()
    )
    callbacks.metric_log.log(progress.step, metrics | improved)
    note_evaluation(loop.config.early_stopping, progress, loop.task.directions)
    moment("on_evaluate_end", dict(metrics))
    return progress.best.get("best/step") == progress.step


def _drop_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Do what `zero_grad` does, without its profiler range: 15 us of a small model's step of 420."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def _timed(batches: Iterator[Batch], clock: Clock) -> Iterator[Batch]:
    section = "epoch start"  # where rows are put in order
    while True:
        since, section = clock.enter(section), "data"  # a context manager would take 8 us a step
        batch = next(batches, None)
        clock.spent["data"] += time.perf_counter() - since
        if batch is None:
            return
        yield batch
