"""A pruned model trained on, or a student trained: on the rows of the original, through the ordinary training loop.

Checkpoints lie in the variant's run folder; a fine-tuning that was killed goes on from the newest.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from shoal.data.dataset_info import inspect_source
from shoal.data.loader import ResidentShard, Rows, Shard, ViewedShard
from shoal.data.partition import lanes_of, partition_source
from shoal.data.redraw import RedrawnRows, RedrawnShard
from shoal.data.sampler import TRAIN
from shoal.data.sources.base import Source
from shoal.distributed.process_group import SingleProcess
from shoal.inference.predictor import Predictor
from shoal.models.inputs import view_of_rows
from shoal.storage.run_folder import RunFolder
from shoal.tasks.base import Task
from shoal.tracking.status import Listener, TrainStatus, ignore
from shoal.training.assemble import assemble_loop
from shoal.training.checkpoint.background import BackgroundSaver
from shoal.training.checkpoint.contents import TrainingProgress, random_state, snapshot
from shoal.training.checkpoint.store import CheckpointStore
from shoal.training.clock import Clock
from shoal.training.loop import Callbacks, TrainConfig, TrainingLoop, train
from shoal.training.optimizer import OptimConfig
from shoal.training.resume import resume_or_start


@dataclass(frozen=True)
class FineTuning:
    """How a variant is trained.

    Attributes:
        folder: of its run, for checkpoints; the newest that it holds is gone on from.
        listen: receives how far it is.
    """

    epochs: int
    optim: OptimConfig
    folder: RunFolder
    listen: Listener = ignore


class _StatusLog:
    """Tells a listener of the points of a fine-tuning, which are kept nowhere."""

    def __init__(self, loop: TrainingLoop, listen: Listener) -> None:
        self._loop, self._listen = loop, listen
        self._latest: TrainStatus | None = None

    def log(self, step: int, metrics: Mapping[str, float], at_s: float | None = None) -> None:
        per_epoch = self._loop.shard.lanes.steps
        self._latest = TrainStatus(
            step, self._loop.total_steps, dict(metrics), is_training=True, steps_per_epoch=per_epoch
        )

    def flush(self) -> None:
        if self._latest:
            self._listen(self._latest)
            self._latest = None


def fine_tune(
    model: nn.Module,
    predictor: Predictor,
    source: Source,
    tuning: FineTuning,
    task: Task | None = None,
) -> int:
    """Train a model on the training rows of the predictor that it was made of, in place; return the steps.

    Args:
        predictor: says how rows become what the model takes.
        source: opened again.
        task: says what is minimized; None: what the predictor's does.

    Raises:
        CheckpointError: no checkpoint is sound, or the newest is of another model.
        DivergedError: the loss is not finite.
        UserError: the rows are not those of training any more.
    """
    if not tuning.epochs:
        return 0
    device, transform = torch.device("cpu"), predictor.transform
    preprocessing = replace(predictor.preprocessing, parts_of_items=source.parts_of_items)
    info = inspect_source(source, preprocessing).model_copy(update={"transform": transform})
    held = partition_source(source, preprocessing, info, 1)[0]
    rows = {name: Rows.of(*arrays, device) for name, arrays in held.items()}
    lanes = lanes_of(held, info, preprocessing)
    shard: Shard = ResidentShard(lanes, rows.pop(TRAIN), rows, device)
    if redrawn := RedrawnRows.of(source, preprocessing, info):
        shard = RedrawnShard(shard, redrawn, device)
    if not transform.is_stored_as_taken:
        shard = ViewedShard(shard, view_of_rows(transform, model))
    predictor.accumulator()  # which gives the task its own loss
    loop = assemble_loop(
        model,
        task or predictor.task,
        shard,
        tuning.optim,
        TrainConfig(epochs=tuning.epochs),
        SingleProcess(),
        device,
        seed=preprocessing.seed,
        has_validation=False,
    )
    store = CheckpointStore(tuning.folder, keep=1)
    progress = resume_or_start(loop, store, preprocessing.seed)
    tuning.listen(TrainStatus(progress.step, loop.total_steps))
    saver = BackgroundSaver(store, {}, info.model_dump_json().encode(), prepare=tuning.folder.renew_lease)
    callbacks = Callbacks(
        _StatusLog(loop, tuning.listen), save=partial(_save, loop, saver), is_save_due=lambda: saver.is_due
    )
    try:
        train(loop, callbacks, progress, Clock())
    finally:
        saver.close()
    model.eval()
    return loop.total_steps


def _save(loop: TrainingLoop, saver: BackgroundSaver, progress: TrainingProgress, is_due: bool) -> None:
    """Write a checkpoint in the background; without a validation split none is the best, and each is due."""
    saver.save(
        snapshot(
            loop.model, loop.optimizer, progress, [random_state()], loop.scaler, spare=saver.take_spare()
        )
    )
