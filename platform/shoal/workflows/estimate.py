"""What a run would take, before there is any hardware: memory, operations, time."""

from dataclasses import dataclass

import torch
from torch import nn

from shoal.data.preprocessing import Transform
from shoal.data.tokenizer import vocabulary_of
from shoal.errors import DataError
from shoal.models.inputs import sample_like
from shoal.models.memory_estimate import TENSOR_SIZE, RunEstimate, TrainingSetup, estimate
from shoal.models.registry import build_model, build_model_for
from shoal.runs.config import RunConfig
from shoal.runs.validate import validate_data
from shoal.tasks.registry import TASKS
from shoal.training.loop import total_steps
from shoal.training.optimizer_state import measure_state


@dataclass(frozen=True)
class DataShape:
    """What a model sees of the data.

    Attributes:
        transform: that makes it of rows; None: the rows were not looked at, and are tokens.
    """

    sample: tuple[int, ...]
    outputs: int
    vocabulary: int
    steps: int | None  # of the whole training, where the number of rows is known or does not matter
    transform: Transform | None = None

    @property
    def dtype(self) -> torch.dtype:
        return torch.int64 if self.vocabulary else torch.float32


def estimate_run(config: RunConfig) -> RunEstimate:
    """Return what training takes by a config, on as many workers as it says.

    Raises:
        UserError: the data cannot be looked at, or the model cannot be built from shapes alone.
    """
    return estimate_for(config, data_shape(config))


def data_shape(config: RunConfig) -> DataShape:
    task = TASKS[config.task]
    if task.takes_text:
        vocabulary = vocabulary_of(config.data.tokenizer)
        outputs = 2 if task.has_label else vocabulary  # any number of classes will do
        return DataShape((config.data.context,), outputs, vocabulary, config.train.max_steps)
    checked = validate_data(config)
    if checked.dataset_info is None:
        raise DataError(
            f"data.source='{config.data.source}' is too large to be looked at here: plan with a part of it, "
            "whose rows are of the same shape"
        )
    transform = checked.dataset_info.transform
    steps = total_steps(config.train, checked.dataset_info.lanes(checked.preprocessing).steps)
    return DataShape(transform.input_shape, transform.outputs, transform.vocabulary, steps, transform)


def estimate_for(config: RunConfig, data: DataShape) -> RunEstimate:
    # Another parametrization has the same sizes, and is made from the weights' values.
    model = config.model.model_copy(update={"parametrization": "standard"})
    state = measure_state(config.optim)
    transform = data.transform
    few, most = TASKS[config.task].evaluation_rows(data.sample, data.outputs)
    return estimate(
        lambda: _build(config.model_copy(update={"model": model}), data),
        data.sample,
        data.dtype,
        TrainingSetup(
            batch_size=config.data.global_batch_size,
            num_workers=max(1, config.scale.most_workers),
            precision=config.train.precision,
            state_per_weight=state.per_weight,
            state_per_tensor=state.bytes_per_tensor,
            micro_batch_size=size if isinstance(size := config.train.micro_batch_size, int) else None,
            ema=config.train.ema is not None,
            tensor_size=config.scale.tp_size or TENSOR_SIZE,
            evaluate_few=few,
            evaluate_most=most,
            evaluate_precision=config.train.evaluate_precision,
        ),
        (lambda model, rows: sample_like(transform, model, rows)) if transform else None,
    )


def _build(config: RunConfig, data: DataShape) -> nn.Module:
    if data.transform is not None:
        return build_model_for(config.model, data.transform, config.task, config.seed)
    return build_model(config.model, data.sample, data.outputs, config.seed, data.vocabulary, config.task)
