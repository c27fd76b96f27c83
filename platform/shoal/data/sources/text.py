"""Reads `text:PATH` and text columns: documents are divided among the splits, tokenised and packed."""

import codecs
import glob
import hashlib
import os
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from pyarrow import fs as arrow_fs

from shoal.data.preprocessing import is_missing
from shoal.data.sampler import SPLITS, TRAIN, VALIDATION, split_rows
from shoal.data.sources.base import Block, Part, Source, filesystem_of
from shoal.data.sources.files import list_files
from shoal.data.text import (
    END_IDS,
    NO_IDS,
    PIECE_CHARS,
    TOKENS,
    TextOptions,
    grouped,
    packed,
    padded,
    token_dtype,
)
from shoal.data.tokenizer import Tokenizer, utf8
from shoal.errors import DataError, nearest

CHUNK_BYTES = 1 << 20  # of a file read at a time
_NOT_THE_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3"}

# Parts of the documents: the split that the source gives them, or None, and the chunks of each one's text.
Documents = Iterator[tuple[str | None, Iterable[Iterable[str]]]]
# All blocks of a source with each row's index into `SPLITS`, as `shoal.data.dataset_info.number_blocks` yields them.
SplitOfRows = Callable[[Source], Iterable[tuple[Block, np.ndarray]]]


def open_text(uri: str, location: str, data: TextOptions, seed: int) -> Source:
    """Make rows for a language model from files: a file, a glob, a directory, or `stdlib`.

    `stdlib` is the source of Python's standard library. Files that are named must be UTF-8; of a directory, what is
    not text (no UTF-8, or with NUL bytes) or hidden is left out.

    Returns:
        A source with one part per split, blocks {"tokens": [rows, context + 1]}, and its tokenizer.

    Raises:
        DataError: there is no text, or none to train on, or a named file is not UTF-8.
    """
    is_library = location == "stdlib"
    listed = _library() if is_library else list_files(uri, "text", location)[0]
    paths = _text_files(uri, listed, skips=is_library or _is_folder(location))

    def read() -> Documents:
        yield None, (_chunks(uri, path) for path in paths)

    return _Corpus(uri, read, data, seed).source(paths)


def open_text_column(source: Source, column: str, options: TextOptions, seed: int) -> Source:
    """Make rows for a language model from a column of texts: each value is a document.

    Rows keep the split that the source gives them. Of a given training split without a validation split beside it,
    `validation_fraction` of the pieces is held out. Missing and empty values count for nothing.

    Returns:
        As `open_text`.

    Raises:
        DataError: there is no such column, it does not hold text, or there is none to train on.
    """

    def read() -> Documents:
        for split, block in source.blocks():
            yield split, ([text] for text in _texts(source.uri, column, block))

    gives_validation = VALIDATION in {part.split for part in source.parts}
    return _Corpus(source.uri, read, options, seed, gives_validation).source(source.paths)


def encode_column(
    source: Source, column: str, label: str, options: TextOptions, split_of_rows: SplitOfRows
) -> Source:
    """Turn a column of texts into tokens for classification; rows, their order and their splits stay.

    A text is cut to `context` tokens or padded; one that is empty or missing is a single END.

    Args:
        split_of_rows: says which rows are for training: the tokenizer is fitted on these alone.

    Returns:
        A source with blocks {"tokens": [rows, context], label: [rows]}, and its tokenizer.

    Raises:
        DataError: there is no such column or label, or the column does not hold text.
    """
    context = options.context

    def training_texts() -> Iterator[str]:
        for block, split in split_of_rows(source):
            texts = _texts(source.uri, column, block)
            yield from (text for text, number in zip(texts, split, strict=True) if number == 0)

    def read(part: Part) -> Iterator[Block]:
        for block in part.read():
            tokens = padded(tokenizer, _texts(source.uri, column, block), context)
            yield {TOKENS: tokens, label: block[label]}

    def open_part(part: Part) -> Part:
        return Part(lambda: read(part), part.split)

    rows = 0
    for _, block in source.blocks():
        _check_column(source.uri, "data.text", column, block)
        _check_column(source.uri, "data.label", label, block)
        rows += len(block[label])
    tokenizer = options.make_tokenizer(training_texts())
    saved = tokenizer.to_json()
    metadata = f"{source.fingerprint} {column} {label} {context} {saved}"
    return Source(
        source.uri,
        "text",
        tuple(map(open_part, source.parts)),
        nbytes=rows * (context * token_dtype(tokenizer.vocabulary).itemsize + 8),
        is_ready=True,
        digest=hashlib.sha256(metadata.encode()).hexdigest()[:16],
        tokenizer=saved,
    )


class _Group(NamedTuple):
    """Pieces that follow each other: their texts, whether each ends its document, its index into `SPLITS`."""

    given: str | None
    texts: list[str]
    ends: list[bool]
    split: np.ndarray

    def of(self, split: str) -> Iterator[tuple[str, bool]]:
        """Yield the pieces of one split."""
        mine = self.split == SPLITS.index(split)
        return (
            (text, ends) for text, ends, is_mine in zip(self.texts, self.ends, mine, strict=True) if is_mine
        )


@dataclass(frozen=True)
class _Corpus:
    """Documents, which can be read again, and how their pieces become rows for a language model."""

    uri: str
    read: Callable[[], Documents]
    options: TextOptions
    seed: int
    gives_validation: bool = False

    def source(self, paths: tuple[str, ...]) -> Source:
        sizes, hasher = self._census()
        self._check(sizes)
        tokenizer = self.options.make_tokenizer(self._training_texts())
        saved = tokenizer.to_json()
        hasher.update(f"{self.options.context} {saved}".encode())
        return Source(
            self.uri,
            "text",
            tuple(self._part(tokenizer, split) for split, size in sizes.items() if size),
            nbytes=self._estimate(tokenizer, sum(sizes.values())),
            paths=paths,
            is_ready=True,
            digest=hasher.hexdigest()[:16],
            tokenizer=saved,
        )

    def _groups(self) -> Iterator[_Group]:
        """Yield all pieces in order; they are numbered through over all documents."""
        first = 0
        for given, texts in self.read():
            for group in grouped(texts):
                split = self._split(np.arange(first, first + len(group)), given)
                yield _Group(given, [text for text, _ in group], [ends for _, ends in group], split)
                first += len(group)

    def _split(self, numbers: np.ndarray, given: str | None) -> np.ndarray:
        """Return each piece's index into `SPLITS`, by the rules of `shoal.data.dataset_info.splits_of`."""
        validation, test = self.options.validation_fraction, self.options.test_fraction
        if given is None:
            return split_rows(self.seed, numbers, validation, test)
        if given == TRAIN and not self.gives_validation:
            return split_rows(self.seed, numbers, validation, 0.0)
        return np.full(len(numbers), SPLITS.index(given), dtype=np.int8)

    def _census(self) -> tuple[dict[str, int], "hashlib._Hash"]:
        """Read everything once: the bytes in each split, and a hash of the content."""
        sizes, hasher = np.zeros(len(SPLITS), dtype=np.int64), hashlib.sha256()
        for group in self._groups():
            encoded = [utf8(text) for text in group.texts]
            np.add.at(sizes, group.split, [len(text) for text in encoded])
            for text, ends in zip(encoded, group.ends, strict=True):
                hasher.update(f"{group.given} {len(text)} {ends} ".encode())
                hasher.update(text)
        return dict(zip(SPLITS, sizes.tolist(), strict=True)), hasher

    def _check(self, sizes: dict[str, int]) -> None:
        if not any(sizes.values()):
            raise DataError(f"data.source='{self.uri}' holds no text: name one with text in it")
        if not sizes[TRAIN] and self.options.given_tokenizer_json is None:
            raise DataError(
                f"data.source='{self.uri}' has {sum(sizes.values())} bytes of text, and none is left to train on: "
                f"pieces of {PIECE_CHARS} characters are dealt to the splits; give more text, or lower "
                "data.validation_fraction and data.test_fraction"
            )

    def _training_texts(self) -> Iterator[str]:
        for group in self._groups():
            yield from (text for text, _ in group.of(TRAIN))

    def _part(self, tokenizer: Tokenizer, split: str) -> Part:
        def read() -> Iterator[Block]:
            ids = self._ids(tokenizer, split)
            return ({TOKENS: rows} for rows in packed(ids, self.options.context, tokenizer.vocabulary))

        return Part(read, split)

    def _ids(self, tokenizer: Tokenizer, split: str) -> Iterator[np.ndarray]:
        """Yield the tokens of a split, some pieces at a time."""
        for group in self._groups():
            mine = list(group.of(split))
            if mine:
                encoded = tokenizer.encode_many([text for text, _ in mine])
                ends = [END_IDS if ends else NO_IDS for _, ends in mine]
                joined = np.concatenate([ids for pair in zip(encoded, ends, strict=True) for ids in pair])
                yield joined.astype(token_dtype(tokenizer.vocabulary))

    def _estimate(self, tokenizer: Tokenizer, size: int) -> int:
        """Estimate the bytes of all rows, from the tokens per byte of the first pieces."""
        sample = next(self._groups()).texts
        tokens = sum(map(len, tokenizer.encode_many(sample))) / sum(len(utf8(text)) for text in sample)
        overlap = 1 + 1 / self.options.context
        return int(size * tokens * overlap * token_dtype(tokenizer.vocabulary).itemsize)


def _texts(uri: str, column: str, block: Block) -> list[str]:
    """Return a column's texts, empty for what is missing.

    Raises:
        DataError: there is no such column, or a value is no text.
    """
    _check_column(uri, "data.text", column, block)
    values = block[column]
    if values.ndim > 1:
        raise DataError(
            f"data.text='{column}' has shape {values.shape[1:]} per row in '{uri}': it must be one text per row"
        )
    texts: list[str] = np.where(is_missing(values), "", values.astype(object)).tolist()
    wrong = next((value for value in texts if not isinstance(value, str)), None)
    if wrong is not None:
        raise DataError(
            f"data.text='{column}' holds {wrong!r} in '{uri}', a {type(wrong).__name__}: it must name a column of text"
        )
    return texts


def _check_column(uri: str, key: str, column: str, block: Block) -> None:
    if column not in block:
        raise DataError(
            f"{key}='{column}' is not a column of '{uri}'{nearest(column, block)}: "
            f"its columns are {', '.join(list(block)[:20])}"
        )


def _library() -> tuple[str, ...]:
    """List the standard library's own modules, sorted by their path within it."""
    root = sysconfig.get_path("stdlib")
    found = glob.glob("**/*.py", root_dir=root, recursive=True)
    own = (path for path in found if not _NOT_THE_LIBRARY & set(path.split(os.sep)))
    return tuple(os.path.join(root, path) for path in sorted(own))


def _is_folder(location: str) -> bool:
    filesystem, inner = filesystem_of(os.path.expanduser(location))
    return bool(filesystem.get_file_info(inner).type == arrow_fs.FileType.Directory)


def _text_files(uri: str, paths: tuple[str, ...], skips: bool) -> tuple[str, ...]:
    """Return the files that hold text; what is not text is skipped or refused, what is empty skipped."""
    kept = []
    for path in paths:
        try:
            if sum(map(len, _chunks(uri, path))):  # to the end: its last byte may be none of UTF-8
                kept.append(path)
        except DataError:
            if not skips:
                raise
        except OSError as error:
            raise DataError(
                f"data.source='{uri}': '{path}' cannot be read ({error}): make it readable"
            ) from None
    if not kept:
        raise DataError(
            f"data.source='{uri}': none of its {len(paths)} files is text (UTF-8, without NUL bytes): "
            "name a folder with text in it, or convert the files"
        )
    return tuple(kept)


def _chunks(uri: str, path: str) -> Iterator[str]:
    """Read the text of a file, `CHUNK_BYTES` at a time.

    Raises:
        DataError: it is not text.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    filesystem, inner = filesystem_of(path)
    place = 0  # of the first byte that is not decoded yet
    with filesystem.open_input_stream(inner, compression=None) as stream:
        is_last = False
        while not is_last:
            chunk = bytes(stream.read(CHUNK_BYTES))
            is_last = not chunk
            held = len(decoder.getstate()[0])
            if b"\0" in chunk:
                raise _not_text(uri, path, f"holds a NUL byte at byte {place + held + chunk.index(0)}")
            try:
                yield decoder.decode(chunk, is_last)
            except UnicodeDecodeError as error:
                raise _not_text(uri, path, f"is not UTF-8 at byte {place + error.start}") from None
            place += held + len(chunk) - len(decoder.getstate()[0])


def _not_text(uri: str, path: str, problem: str) -> DataError:
    return DataError(
        f"data.source='{uri}': '{path}' {problem}: text must be UTF-8; convert it, e.g. with "
        "iconv -f latin1 -t utf-8, or name a folder, of which such files are left out"
    )
