"""Tasks by name."""

import math
from dataclasses import replace

from shoal.data.config import DataConfig
from shoal.data.loader import Batch
from shoal.data.preprocessing import Transform
from shoal.data.tokenizer import tokenizer_from_json
from shoal.tasks.base import MAX_INPUTS, MAX_ROWS, Task, TaskName
from shoal.tasks.classification import Classification
from shoal.tasks.image_classification import Augmented
from shoal.tasks.language import CausalLM, MaskedLM
from shoal.tasks.regression import Regression


def make_task(name: TaskName, transform: Transform, data: DataConfig, seed: int) -> Task:
    """Build the task a config names."""
    match name:
        case "regression":
            return Regression(transform.label.std)
        case "causal_lm" | "masked_lm":
            assert transform.tokenizer is not None
            kind = CausalLM if name == "causal_lm" else MaskedLM
            return kind(tokenizer_from_json(transform.tokenizer), transform.input_shape[0], seed)
        case "sequence_classification":
            return Classification(transform.outputs, _as_tokens)
        case "image_classification":
            task = Classification(transform.outputs, Augmented(data.flip, data.pad, seed))
            task.held_out_rows = max(1, min(MAX_ROWS, MAX_INPUTS // math.prod(transform.input_shape)))
            return task
        case _:
            return Classification(transform.outputs)


def _as_tokens(batch: Batch, epoch: int | None) -> Batch:
    return replace(batch, inputs=batch.inputs.long())
