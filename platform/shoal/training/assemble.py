"""A config, data and a process group become a ready training loop: the one place that wires its parts.

It knows models, tasks and all training techniques. It does not know runs: metric log, checkpoints and stop requests
are `Callbacks` of `shoal.training.loop.train`.
"""

from typing import Protocol

import torch
from torch import Tensor, nn

from shoal.config.import_path import is_path
from shoal.data.config import DataConfig
from shoal.data.loader import Shard, ViewedShard
from shoal.data.preprocessing import Transform
from shoal.data.tree import first_tensor, row_count
from shoal.devices import move
from shoal.distributed.process_group import Collective, preserve_state
from shoal.distributed.sync_batchnorm import use_sync_batchnorm
from shoal.errors import ModelError
from shoal.models.call import call_model
from shoal.models.config import ModelConfig
from shoal.models.cpu_kernels import use_onednn
from shoal.models.dropout import use_row_dropout
from shoal.models.inputs import view_of_rows
from shoal.models.registry import build_model_for
from shoal.models.row_draws import announced
from shoal.tasks.base import Task
from shoal.tasks.float64 import view_with_float64, where_float64_is
from shoal.tasks.registry import TaskName, make_task
from shoal.training.accumulation import make_accumulation, split_batch
from shoal.training.activation_checkpointing import checkpoint_blocks
from shoal.training.compile import compile_model
from shoal.training.counted import CountedShard
from shoal.training.dependence import Dependence
from shoal.training.ema import EMA
from shoal.training.loop import TrainConfig, TrainingLoop, rows_of, total_steps
from shoal.training.lr_schedule import make_schedule
from shoal.training.mixed_precision import autocast, make_scaler
from shoal.training.optimizer import OptimConfig, build_optimizer
from shoal.training.user_callbacks import UserCallbacks


class TrainingSections(Protocol):
    """The part of a config that training depends on; a run's `RunConfig` has it."""

    @property
    def seed(self) -> int: ...

    @property
    def task(self) -> TaskName: ...

    @property
    def data(self) -> DataConfig: ...

    @property
    def model(self) -> ModelConfig: ...

    @property
    def optim(self) -> OptimConfig: ...

    @property
    def train(self) -> TrainConfig: ...

    @property
    def scale(self) -> "SyncSections": ...


class SyncSections(Protocol):
    """The part of the `scale` section that training depends on."""

    @property
    def sync_batchnorm(self) -> bool: ...


def assemble(
    config: TrainingSections,
    transform: Transform,
    shard: Shard,
    collective: Collective,
    device: torch.device,
    has_validation: bool = True,
) -> TrainingLoop:
    """Build task and model from a config, and the training loop around them.

    Args:
        transform: how rows become inputs and targets: their shape, classes, tokenizer.
        shard: this worker's rows, on its device.
        collective: of the workers.
        has_validation: whether there is a validation split to evaluate on.

    Raises:
        UserError: the model cannot be built, compiled or divided among the workers as the config says, or differs
            from worker to worker.
    """
    task = make_task(config.task, transform, config.data, config.seed, config.train)
    model = build_model_for(config.model, transform, config.task, config.seed)
    if not transform.is_stored_as_taken:
        shard = ViewedShard(shard, view_of_rows(transform, model))
    if is_path(config.model.name) and collective.size > 1:
        _check_same_weights(model, config.model.name, collective)
    return assemble_loop(
        model,
        task,
        shard,
        config.optim,
        config.train,
        collective,
        device,
        seed=config.seed,
        sync_batchnorm=config.scale.sync_batchnorm,
        has_validation=has_validation,
    )


def _check_same_weights(model: nn.Module, name: str, collective: Collective) -> None:
    """Refuse a user's builder that built other weights on another worker: nothing else makes them equal.

    Raises:
        ModelError: it did.
    """
    sums = {key: _sum(tensor) for key, tensor in model.state_dict(keep_vars=True).items()}
    first, *others = collective.gather(sums)
    for rank, its in enumerate(others, 1):
        differing = [key for key in first.keys() | its.keys() if first.get(key) != its.get(key)]
        if differing:
            raise ModelError(
                f"model.name='{name}' built another '{min(differing)}' on worker {rank} than on worker 0: draw random "
                "numbers from torch, numpy.random or random, which are seeded, or give your own generator a seed"
            )


def _sum(tensor: Tensor) -> str:
    """Return a sum to the bit, as text, so that one that is not a number equals itself."""
    whole = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    return str(whole.detach().sum(dtype=torch.float64).item())


def assemble_loop(
    model: nn.Module,
    task: Task,
    shard: Shard,
    optim: OptimConfig,
    train: TrainConfig,
    collective: Collective,
    device: torch.device,
    seed: int = 0,
    sync_batchnorm: bool = False,
    has_validation: bool = True,
) -> TrainingLoop:
    """Build the training loop of a model and a task; the model is prepared in place.

    The order matters: layers are replaced before the model is wrapped or sharded, and optimizer and EMA take the
    parameters that it has afterwards.
    """
    shard = ViewedShard(shard, view_with_float64(task.view, device)) if task.view else shard
    if task.counts_terms and task.own_loss is None:
        shard = CountedShard(shard, task.terms, collective)
    _replace_layers(model, train, collective, sync_batchnorm)
    _prepare(model, task, train, collective, device)
    forward = _wrap(model, train, task, shard, collective, seed)
    return TrainingLoop(
        config=train,
        model=model,
        forward=forward,
        optimizer=build_optimizer(model, optim),
        learning_rate=make_schedule(optim, total_steps(train, shard.lanes.steps)),
        clip_norm=optim.clip_norm,
        task=task,
        shard=shard,
        collective=collective,
        accumulation=make_accumulation(
            train.micro_batch_size, model, forward, collective, shard.lanes.num_workers
        ),
        scaler=make_scaler(train.precision, device.type),
        ema=EMA(model, train.ema) if train.ema else None,
        dependence=Dependence(
            model, collective, sync_batchnorm and train.micro_batch_size is None, train.compile
        ),
        seed=seed,
        has_validation=has_validation,
        user_callbacks=UserCallbacks(train.callbacks),
    )


def _replace_layers(
    model: nn.Module, train: TrainConfig, collective: Collective, sync_batchnorm: bool
) -> None:
    """Have dropout and BatchNorm not depend on which of the workers a row is with."""
    use_row_dropout(model)
    # With micro_batch_size=auto a worker that runs out of memory would keep the others waiting in a layer.
    if sync_batchnorm and collective.data_size > 1 and train.micro_batch_size != "auto":
        all_reduce = torch.compiler.disable(collective.all_reduce) if train.compile else collective.all_reduce
        use_sync_batchnorm(model, all_reduce, lambda: not announced.is_filler)


def _prepare(
    model: nn.Module, task: Task, train: TrainConfig, collective: Collective, device: torch.device
) -> None:
    """Move the model to its device and set how its layers, and the loss, compute."""
    # A sharded model need not fit the device as a whole: `wrap` moves its shards.
    if not collective.is_sharded:
        move(model, device)
    if train.activation_checkpointing:
        checkpoint_blocks(model)
    if train.compile:
        compile_model(model, device)
        task.compile()
    else:
        use_onednn(model)


def _wrap(
    model: nn.Module, train: TrainConfig, task: Task, shard: Shard, collective: Collective, seed: int
) -> nn.Module:
    """Return the module whose backward reduces gradients over the workers.

    With micro_batch_size=auto that is the model itself: gradients are reduced once it is known that memory sufficed.
    """
    size = train.micro_batch_size
    if size == "auto":
        return model

    def warmup(module: nn.Module) -> None:
        """Make one forward and backward that leaves gradients and nothing else."""
        batch = shard.some_batch()
        micro_batch = split_batch(batch, size or row_count(batch.inputs), count=1)[0]
        with preserve_state(model), rows_of(micro_batch, 0, seed, collective):
            module.train()
            with autocast(train.precision, first_tensor(batch.inputs).device.type):
                outputs = call_model(module, micro_batch.inputs, model)
            task.loss(*where_float64_is(outputs, micro_batch)).backward()

    return collective.wrap(model, warmup)
