"""Opens the source of a config as its task needs it: rows with a label, tokens of text, decoded images."""

from dataclasses import replace
from functools import partial

from shoal.config.secrets import reveal
from shoal.data.audio import AudioFormat
from shoal.data.config import DataConfig
from shoal.data.dataset_info import blocks_with_splits
from shoal.data.preprocessing_spec import PreprocessingSpec
from shoal.data.sources.annotated import BOXES
from shoal.data.sources.audio import list_recordings
from shoal.data.sources.base import Source
from shoal.data.sources.boxes import open_boxes
from shoal.data.sources.image_column import decode_image_column
from shoal.data.sources.open import AUDIO, IMAGES, TEXT, open_source
from shoal.data.sources.recordings import recordings_of_columns
from shoal.data.sources.speech import SpeechOptions, speech_source
from shoal.data.sources.spoken_digits import list_spoken
from shoal.data.sources.strings import Compose
from shoal.data.sources.text import open_text
from shoal.data.sources.text_column import encode_column, open_text_column
from shoal.data.text import TextOptions
from shoal.errors import DataError
from shoal.tasks.registry import TASKS, TaskName


def open_data(
    data: DataConfig,
    task: TaskName,
    seed: int,
    tokenizer: str | None = None,
    image_bits: int | None = None,
    audio: AudioFormat | None = None,
    categories: tuple[str, ...] = (),
) -> Source:
    """Open the source of a config as its task needs it.

    Args:
        data: the config section.
        task: what is learnt.
        seed: of the splits; a tokenizer is fitted on the training split alone.
        tokenizer: a trained model's, as JSON; then none is fitted.
        image_bits: that values of 16-bit images use, as a trained model's; None: those that a sample uses.
        audio: a trained model's format of recordings; None: it is chosen by them.
        categories: of a trained model's boxes; empty: those that the data have.

    Raises:
        DataError: the source does not exist, or the task cannot use it.
    """
    kind = TASKS[task]
    if kind.takes_recordings:
        return open_recordings(data, seed, audio)
    scheme, _, location = reveal(data.source).partition(":")
    if kind.takes_boxes:
        return _open_boxes(data, task, location, image_bits, categories)
    if scheme == IMAGES and not kind.takes_text:
        return open_source(data.source, shape=data.shape, bits=image_bits, options=data.read_options)
    if scheme != TEXT and not kind.takes_text:
        source = open_source(data.source, options=data.read_options)
        if not kind.decodes_images:
            return source
        return decode_image_column(source, data.labels[0], data.shape, image_bits, data.weight)
    splits = data.split_rule(seed)
    options = TextOptions(data.context, data.tokenizer, splits.validation, splits.test, tokenizer)
    if scheme == TEXT:
        if kind.has_label:
            raise DataError(
                f"data.source='{data.source}' is text without labels, and task={task} learns a label: set "
                "task=causal_lm or masked_lm, or name rows with a text column, e.g. csv:PATH with data.text=COLUMN"
            )
        return open_text(data.source, location, options, splits.seed, data.encoding)
    if data.text is None:
        raise DataError(
            f"task={task} learns from text, and data.text names no column of '{data.source}': set data.text=COLUMN"
            + ("" if kind.has_label else ", or data.source=text:PATH")
        )
    source = open_source(data.source, options=data.read_options)
    if not kind.has_label:
        return open_text_column(source, data.text, options, splits.seed)
    split_of_rows = partial(blocks_with_splits, preprocessing=preprocessing_spec(data, task, seed, source))
    return encode_column(source, data.text, data.labels[0], options, split_of_rows, data.weight)


def open_recordings(data: DataConfig, seed: int, audio: AudioFormat | None = None) -> Source:
    """Open recordings with their texts: files, a column of encoded ones, or spoken by a synthesiser.

    Args:
        data: the config section.
        seed: of the splits, and of what is strung together.
        audio: a trained model's format; None: it is chosen by the recordings.

    Raises:
        DataError: the source does not exist, or its recordings cannot be used.
    """
    scheme, _, location = reveal(data.source).partition(":")
    [label] = data.labels
    if scheme == AUDIO:
        found = list_recordings(data.source, location, label, data.read_options)
    elif scheme == "synthetic":
        found = list_spoken(data.source, location)
    else:
        found = recordings_of_columns(open_source(data.source, options=data.read_options), label)
    rule = data.split_rule(seed)
    options = SpeechOptions(
        label,
        rule,
        data.tokenizer,
        rate=data.sample_rate,
        skips=data.on_bad == "skip",
        compose=Compose(*data.composed, rule.seed) if data.composed else None,
        trained=audio,
    )
    return speech_source(data.source, scheme, found, options)


def _open_boxes(
    data: DataConfig, task: TaskName, location: str, bits: int | None, categories: tuple[str, ...]
) -> Source:
    """Open images with boxes.

    Raises:
        DataError: the source holds none.
    """
    if data.source.startswith(f"{BOXES}:"):
        return open_boxes(data.source, location, data.shape, bits, categories)
    source = open_source(data.source, options=data.read_options)
    if not source.categories:
        raise DataError(
            f"task={task} learns from images with boxes, and data.source='{data.source}' has none: set "
            "data.source=boxes:PATH (COCO, Pascal VOC, YOLO or Hugging Face's objects), or synthetic:detection"
        )
    return source


def preprocessing_spec(data: DataConfig, task: TaskName, seed: int, source: Source) -> PreprocessingSpec:
    """Return what determines how the rows of a source are preprocessed."""
    spec = make_preprocessing_spec(
        data, task, seed, source.is_ready, source.tokenizer, source.image_bits, source.audio
    )
    return replace(spec, parts_of_items=source.parts_of_items, categories=source.categories)


def make_preprocessing_spec(
    data: DataConfig,
    task: TaskName,
    seed: int,
    is_ready: bool,
    tokenizer: str | None,
    image_bits: int | None = None,
    audio: AudioFormat | None = None,
    categories: tuple[str, ...] = (),
) -> PreprocessingSpec:
    """Return what determines how rows are preprocessed, where their source is not open."""
    kind = TASKS[task]
    return PreprocessingSpec(
        data,
        seed,
        kind.is_classification,
        is_ready,
        tokenizer,
        kind.has_label and data.label is not None,
        image_bits,
        kind.keeps_targets or isinstance(data.label, tuple),
        kind.metric_kind == "multilabel",
        audio=audio,
        categories=categories,
    )


def reopen_source(
    preprocessing: PreprocessingSpec,
    task: TaskName,
    uri: str | None = None,
    shape: tuple[int, ...] | None = None,
) -> Source:
    """Open a trained model's data again, or other data in the same way: with its tokenizer and the depth of its images.

    Args:
        preprocessing: of the model.
        task: what it has learnt.
        uri: of other data.
        shape: of the images that it was trained on; None: as its config says.
    """
    data = preprocessing.data if uri is None else preprocessing.data.model_copy(update={"source": uri})
    if shape:
        data = data.model_copy(update={"shape": shape})
    return open_data(
        data,
        task,
        preprocessing.seed,
        preprocessing.tokenizer,
        preprocessing.image_bits,
        preprocessing.audio,
        preprocessing.categories,
    )
