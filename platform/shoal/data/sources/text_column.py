"""Reads a column of texts: as documents of a language model, or as the inputs of a classification."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from shoal.data.chat import chat_text, is_messages
from shoal.data.sources.base import Block, Part, Source, check_column
from shoal.data.sources.corpus import Corpus, Documents
from shoal.data.text import TOKENS, TextOptions, padded, token_dtype
from shoal.data.values import is_missing
from shoal.errors import DataError

# All blocks of a source with each row's index into `SPLITS`: `shoal.data.dataset_info.blocks_with_splits`.
SplitOfRows = Callable[[Source], Iterable[tuple[Block, np.ndarray]]]


def open_text_column(source: Source, column: str, options: TextOptions, seed: int) -> Source:
    """Make rows for a language model from a column of texts: each value is a document.

    Rows keep the split that the source states. Of a stated training split without a validation split beside it,
    `validation_fraction` of the pieces is held out. Missing and empty values are skipped.

    Returns:
        As `shoal.data.sources.text.open_text`.

    Raises:
        DataError: there is no such column, it does not hold text, or there is none to train on.
    """

    def read() -> Documents:
        for split, block in source.blocks():
            yield split, ([text] for text in texts_of(source.uri, column, block))

    return Corpus(source.uri, read, options, seed, source.has_validation).source()


def encode_column(
    source: Source,
    column: str,
    label: str,
    options: TextOptions,
    split_of_rows: SplitOfRows,
    weight: str | None = None,
) -> Source:
    """Turn a column of texts into tokens for classification; rows, their order and their splits stay.

    A text is truncated or padded to `context` tokens; an empty or missing one is a single END.

    Args:
        source: rows of any kind.
        column: of the texts.
        label: of the classes.
        options: of the tokenizer and the context.
        split_of_rows: says which rows are for training: the tokenizer is fitted on these alone.
        weight: of the samples' weights; None: there are none.

    Returns:
        A source with blocks {"tokens": [rows, context], label: [rows]}, weights too, and its tokenizer.

    Raises:
        DataError: there is no such column, label or weight, or the column does not hold text.
    """
    context = options.context
    kept = {"data.label": label} | ({"data.weight": weight} if weight else {})

    def training_texts() -> Iterator[str]:
        for block, split in split_of_rows(source):
            texts = texts_of(source.uri, column, block)
            yield from (text for text, number in zip(texts, split, strict=True) if number == 0)

    def read(part: Part) -> Iterator[Block]:
        for block in part.read():
            tokens = padded(tokenizer, texts_of(source.uri, column, block), context)
            yield {TOKENS: tokens, **{name: block[name] for name in kept.values()}}

    def open_part(part: Part) -> Part:
        return Part(lambda: read(part), part.split)

    rows = 0
    for _, block in source.blocks():
        for key, name in {"data.text": column, **kept}.items():
            check_column(source.uri, key, name, block)
        rows += len(block[label])
    tokenizer = options.make_tokenizer(training_texts())
    saved = tokenizer.to_json()
    described = f"{source.fingerprint} {column} {' '.join(kept.values())} {context} {saved}"
    return Source(
        source.uri,
        "text",
        tuple(map(open_part, source.parts)),
        nbytes=rows * (context * token_dtype(tokenizer.vocabulary).itemsize + 8),
        is_ready=True,
        digest=hashlib.sha256(described.encode()).hexdigest()[:16],
        tokenizer=saved,
    )


def texts_of(uri: str, column: str, block: Block) -> list[str]:
    """Return a column's texts, empty for missing values; chat messages by the template of `shoal.data.chat`.

    Raises:
        DataError: there is no such column, or a value is not a text.
    """
    check_column(uri, "data.text", column, block)
    values = block[column]
    if values.ndim > 1 and not (len(values) and is_messages(values[0])):
        raise DataError(
            f"data.text='{column}' has shape {values.shape[1:]} per row in '{uri}': it must be one text per row"
        )
    missing = np.zeros(len(values), dtype=bool) if values.ndim > 1 else is_missing(values)
    return [
        "" if is_gone else value if isinstance(value, str) else _as_text(uri, column, value)
        for value, is_gone in zip(_rows(values), missing, strict=True)
    ]


def _rows(values: np.ndarray) -> list[Any]:
    return list(values) if values.dtype == object else values.tolist()


def _as_text(uri: str, column: str, value: Any) -> str:
    if isinstance(value, list | np.ndarray) and len(value) == 0:
        return ""
    where = f"data.text='{column}' holds"
    try:
        if is_messages(value):
            return chat_text(value)
    except ValueError as error:
        raise DataError(f"{where} messages in '{uri}', and {error}: leave such rows out") from None
    if isinstance(value, Mapping | list | np.ndarray):
        keys = list(value)[:5] if isinstance(value, Mapping) else [type(item).__name__ for item in value[:3]]
        raise DataError(
            f"{where} a {type(value).__name__} ({', '.join(map(str, keys))}) in '{uri}': it must name a "
            "column of text, or of chat messages [{role, content}, ...]"
        )
    raise DataError(f"{where} {value!r} in '{uri}', a {type(value).__name__}: it must name a column of text")
