"""A pruned model trained on: the rows it was trained on, through the ordinary training loop, in this process."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from shoal.data.dataset_info import inspect_source
from shoal.data.loader import ResidentShard, Rows, Shard, ViewedShard
from shoal.data.partition import partition_source
from shoal.data.redraw import RedrawnRows, RedrawnShard
from shoal.data.sampler import TRAIN
from shoal.data.sources.base import Source
from shoal.distributed.process_group import SingleProcess
from shoal.inference.predictor import Predictor
from shoal.models.inputs import view_of_rows
from shoal.training.assemble import assemble_loop
from shoal.training.checkpoint.contents import TrainingProgress
from shoal.training.clock import Clock
from shoal.training.loop import Callbacks, TrainConfig, train
from shoal.training.optimizer import OptimConfig


class _NoLog:
    """Where the points of a fine-tuning go."""

    def log(self, step: int, metrics: Mapping[str, float], at_s: float | None = None) -> None:
        pass

    def flush(self) -> None:
        pass


def fine_tune(model: nn.Module, predictor: Predictor, source: Source, epochs: int, optim: OptimConfig) -> int:
    """Train a model on the training rows of the predictor that it was made of, in place; return the steps.

    Args:
        predictor: says how rows become what the model takes, and what is minimized.
        source: opened again.

    Raises:
        DivergedError: the loss is not finite.
        UserError: the rows are not those of training any more.
    """
    if not epochs:
        return 0
    device, transform = torch.device("cpu"), predictor.transform
    preprocessing = replace(predictor.preprocessing, parts_of_items=source.parts_of_items)
    info = inspect_source(source, preprocessing).model_copy(update={"transform": transform})
    held = partition_source(source, preprocessing, info, 1)[0]
    rows = {name: Rows.of(*arrays, device) for name, arrays in held.items()}
    shard: Shard = ResidentShard(info.lanes(preprocessing), rows.pop(TRAIN), rows, device)
    if redrawn := RedrawnRows.of(source, preprocessing, info):
        shard = RedrawnShard(shard, redrawn, device)
    if not transform.is_stored_as_taken:
        shard = ViewedShard(shard, view_of_rows(transform, model))
    predictor.accumulator()  # which gives the task its own loss
    loop = assemble_loop(
        model,
        predictor.task,
        shard,
        optim,
        TrainConfig(epochs=epochs),
        SingleProcess(),
        device,
        seed=preprocessing.seed,
        has_validation=False,
    )
    train(loop, Callbacks(_NoLog()), TrainingProgress(), Clock())
    model.eval()
    return loop.total_steps
