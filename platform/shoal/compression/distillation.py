"""A student: a smaller model of the same kind as a trained one, which teaches it by its outputs.

Its loss is that of Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", section 2: the cross entropy
with the teacher's softened probabilities beside the task's own loss.
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from shoal.compression.config import CompressOptions, StudentSize
from shoal.data.loader import Batch
from shoal.data.tree import Tree, row_count
from shoal.errors import ModelError
from shoal.inference.description import Description
from shoal.inference.predictor import Predictor
from shoal.models.call import call_model
from shoal.models.config import ModelConfig
from shoal.models.registry import REGISTRY, default_depth
from shoal.tasks.base import Task
from shoal.tasks.custom import Custom
from shoal.tasks.outputs import logits_of

# Cho and Hariharan 2019, "On the Efficacy of Knowledge Distillation", section 3.
TEMPERATURE, TEACHER_SHARE = 4.0, 0.9


class TeacherLoss:
    """The losses of a student: those by what a teacher returns for the same inputs, and those of the task itself."""

    key = "compress.distill"

    def __init__(self, teacher: nn.Module, task: Task) -> None:
        """Take a model in evaluation mode, and the task that it was trained for."""
        self._teacher, self._task = teacher, task

    def __call__(self, outputs: Any, targets: Tree, inputs: Tree) -> dict[str, Tensor]:
        """Return the losses [n] of the samples by name.

        Raises:
            ModelError: the outputs do not have the shape that the task needs.
        """
        batch = Batch(inputs, targets, count=row_count(inputs))
        own = torch.stack(list(self._task.sample_losses(outputs, batch).values())).sum(dim=0)
        with torch.no_grad():
            taught = logits_of(call_model(self._teacher, inputs))
        soft = self._task.soft_losses(logits_of(outputs), taught, batch, TEMPERATURE)
        return {"teacher": TEACHER_SHARE * soft, "labels": (1 - TEACHER_SHARE) * own}


def taught_task(teacher: Predictor) -> Task:
    """Return the task of a model with the loss of its students."""
    teacher.accumulator()  # which gives the task the user's loss and weights
    task = copy.copy(teacher.task)
    task.own_loss = TeacherLoss(teacher.model, teacher.task)
    return task


def student_of(description: Description, size: StudentSize) -> Description:
    """Return the description of a student: its weights are new, so that none is frozen or pruned."""
    changes = size.model_dump(exclude_none=True) | {"freeze": []}
    return description.model_copy(
        update={"model": description.model.model_copy(update=changes), "shapes": {}}
    )


def check_model(predictor: Predictor, description: Description, options: CompressOptions) -> list[nn.Module]:
    """Return the students, untrained; refuse a model that can have none, or students that are not smaller.

    Raises:
        ModelError: with the reason.
    """
    config = description.model
    if config.name not in REGISTRY:
        raise ModelError(
            f"model.name='{config.name}' has no students: compress.distill builds those of {', '.join(REGISTRY)}; "
            "set compress.prune or compress.quantize"
        )
    if predictor.task.name == Custom.name:
        raise ModelError(
            "compress.distill with task=custom, where only a loss of your own knows what outputs mean: set "
            "compress.prune or compress.quantize"
        )
    students = []
    parameters = sum(parameter.numel() for parameter in predictor.model.parameters())
    for size in options.distill.sizes:
        for key, value, of_model in _sizes(config, size):
            if value > of_model:
                raise ModelError(
                    f"compress.distill.{key}={value} is larger than the model's, whose model.{key} is {of_model}: a "
                    f"student is smaller; set it below {of_model}"
                )
        student = student_of(description, size).build()
        found = sum(parameter.numel() for parameter in student.parameters())
        if found >= parameters:
            raise ModelError(
                f"compress.distill={size} makes a student of {found:,} parameters, and the model has {parameters:,}: "
                "set a smaller width or depth"
            )
        students.append(student)
    return students


def _sizes(config: ModelConfig, size: StudentSize) -> Iterator[tuple[str, int, int]]:
    """Yield each key that a student changes, its value, and the model's."""
    depth = default_depth(REGISTRY[config.name]) if config.depth is None else config.depth
    of_model = {"width": config.width, "depth": depth}
    for key, value in size.model_dump(exclude_none=True).items():
        yield key, value, of_model[key]
