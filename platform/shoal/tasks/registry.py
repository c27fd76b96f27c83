"""Tasks by name. To add one: its module, and a line in `TASKS`."""

from typing import TYPE_CHECKING, Literal

from shoal.config import import_path
from shoal.data.config import DataConfig
from shoal.data.preprocessing import Transform
from shoal.tasks.base import Task
from shoal.tasks.classification import Classification
from shoal.tasks.custom import Custom
from shoal.tasks.image_classification import ImageClassification
from shoal.tasks.language import CausalLM, MaskedLM
from shoal.tasks.multilabel_classification import MultilabelClassification
from shoal.tasks.object_detection import ObjectDetection
from shoal.tasks.objective import Find, ObjectiveConfig, use_objective
from shoal.tasks.regression import Regression
from shoal.tasks.sequence_classification import SequenceClassification
from shoal.tasks.speech_recognition import SpeechRecognition

TASKS: dict[str, type[Task]] = {
    task.name: task
    for task in (
        Classification,
        Regression,
        CausalLM,
        MaskedLM,
        SequenceClassification,
        ImageClassification,
        MultilabelClassification,
        ObjectDetection,
        Custom,
        SpeechRecognition,
    )
}

# The names are known when this module is imported, which is when a config's schema needs them, and not to mypy.
if TYPE_CHECKING:
    TaskName = str
else:
    TaskName = Literal[tuple(TASKS)]


def make_task(
    name: TaskName,
    transform: Transform,
    data: DataConfig,
    seed: int,
    objective: ObjectiveConfig | None = None,
    find: Find = import_path.find,
) -> Task:
    """Build the task a config names, for the rows that a transform makes.

    Args:
        objective: what is minimized and measured; None: what the task does by itself.
        find: finds the user's functions and classes.

    Raises:
        UserError: there is no such loss or metric.
    """
    task = TASKS[name].build(transform, data, seed)
    task.held_out_rows = task.evaluation_rows(transform.input_shape, transform.outputs)
    if objective is not None:
        use_objective(task, objective, transform.label, transform.weight is not None, find)
    return task
