"""What a config's `data` section means to a task: rows with a label, tokens of text, images.

The one place that knows which tasks are on text; how text becomes tokens is `shoal.data.sources.text`'s affair.
"""

from functools import partial

from shoal.data.config import DataConfig
from shoal.data.dataset_info import PreprocessingSpec, blocks_with_splits
from shoal.data.sources.base import Source
from shoal.data.sources.open import open_source
from shoal.data.sources.text import encode_column, open_text, open_text_column
from shoal.data.text import TextOptions
from shoal.errors import DataError
from shoal.tasks.base import LANGUAGE, ON_TEXT, TaskName


def open_data(data: DataConfig, task: TaskName, seed: int, tokenizer: str | None = None) -> Source:
    """Open the source of a config as its task needs it.

    Args:
        seed: of the splits; a tokenizer is fitted on the training split alone.
        tokenizer: a trained model's, as JSON; then none is fitted.

    Raises:
        DataError: the source is not there, or is of no use to the task.
    """
    scheme, _, location = data.source.partition(":")
    seed = seed if data.split_seed is None else data.split_seed
    options = TextOptions(
        data.context, data.tokenizer, data.validation_fraction, data.test_fraction, tokenizer
    )
    if scheme == "text":
        if task not in LANGUAGE:
            raise DataError(
                f"data.source='{data.source}' is text without labels, and task={task} learns a label: set "
                "task=causal_lm or masked_lm, or name rows with a text column, e.g. csv:PATH with data.text=COLUMN"
            )
        return open_text(data.source, location, options, seed)
    if task not in ON_TEXT:
        return open_source(data.source, shape=data.shape if scheme == "images" else None)
    if data.text is None:
        raise DataError(
            f"task={task} learns from text, and data.text names no column of '{data.source}': set data.text=COLUMN"
            + (", or data.source=text:PATH" if task in LANGUAGE else "")
        )
    source = open_source(data.source)
    if task in LANGUAGE:
        return open_text_column(source, data.text, options, seed)
    preprocessing = preprocessing_spec(data, task, seed, source)
    return encode_column(
        source, data.text, data.label, options, partial(blocks_with_splits, preprocessing=preprocessing)
    )


def preprocessing_spec(data: DataConfig, task: TaskName, seed: int, source: Source) -> PreprocessingSpec:
    """Return what decides how the rows of a source are treated."""
    return make_preprocessing_spec(data, task, seed, source.is_ready, source.tokenizer)


def make_preprocessing_spec(
    data: DataConfig, task: TaskName, seed: int, is_ready: bool, tokenizer: str | None
) -> PreprocessingSpec:
    """Return the recipe of a task, whose source is not at hand."""
    return PreprocessingSpec(
        data, seed, task.endswith("classification"), is_ready, tokenizer, task not in LANGUAGE
    )


def reopen_source(preprocessing: PreprocessingSpec, task: TaskName, uri: str | None = None) -> Source:
    """Open the data of a trained model again, or other data in the same way: with the tokenizer it was trained with."""
    data = preprocessing.data if uri is None else preprocessing.data.model_copy(update={"source": uri})
    return open_data(data, task, preprocessing.seed, preprocessing.tokenizer)
