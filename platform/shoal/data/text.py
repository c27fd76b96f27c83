"""Text becomes rows of tokens: files or a column, cut into pieces, dealt to splits, packed.

It knows files, documents and tokens; what is learnt from the rows is not known here. Documents are cut before they
are dealt to splits and packed after it: so a split is a function of the seed and of a piece's number, and no row
of one split holds text of another, as it would if packed rows were dealt.
"""

import codecs
import glob
import hashlib
import os
import sysconfig
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from pyarrow import fs as arrow_fs

from shoal.data.order import SPLITS, TRAIN, VALIDATION, split_rows
from shoal.data.sources import Block, Part, Source, filesystem_of, list_files
from shoal.data.tokenizer import END, PAD, Ids, Tokenizer, make_tokenizer, tokenizer_from_json, utf8
from shoal.data.transform import is_missing
from shoal.errors import DataError, nearest

PIECE_CHARS = 16 << 10
BLOCK_BYTES = 32 << 20
CHUNK_BYTES = 1 << 20
GROUP_CHARS = 1 << 20  # encoded at a time: the BPE library takes about 100 bytes per token while it works
TOKENS = "tokens"

_NOT_THE_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3"}

# Parts of the documents: the split that the source gives them, or None, and the chunks of each one's text.
Documents = Iterator[tuple[str | None, Iterable[Iterable[str]]]]
# All blocks of a source with each row's index into `SPLITS`, as `shoal.data.prepare.number_blocks` yields them.
SplitOfRows = Callable[[Source], Iterable[tuple[Block, np.ndarray]]]


@dataclass(frozen=True)
class TextOptions:
    """What decides how text becomes rows, besides the text and the seed.

    Attributes:
        context: tokens per sequence.
        tokenizer: its name, for `make_tokenizer`.
        given_tokenizer_json: a trained model's tokenizer; then nothing is fitted.
    """

    context: int
    tokenizer: str = "byte"
    validation_fraction: float = 0.1
    test_fraction: float = 0.1
    given_tokenizer_json: str | None = None

    def make_tokenizer(self, texts: Iterable[str]) -> Tokenizer:
        if self.given_tokenizer_json is not None:
            return tokenizer_from_json(self.given_tokenizer_json)
        return make_tokenizer(self.tokenizer, texts)


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
    facts = f"{source.fingerprint} {column} {label} {context} {saved}"
    return Source(
        source.uri,
        "text",
        tuple(map(open_part, source.parts)),
        nbytes=rows * (context * _token_type(tokenizer.vocabulary).itemsize + 8),
        is_ready=True,
        digest=hashlib.sha256(facts.encode()).hexdigest()[:16],
        tokenizer=saved,
    )


def pieces(texts: Iterable[str]) -> list[str]:
    """Cut each document into pieces of at most `PIECE_CHARS` characters, at line ends where it has them.

    Joined, the pieces of a document are the document. A piece depends on nothing behind it but whether the document
    goes on: what is appended leaves all pieces but the last as they were.
    """
    return [piece for text in texts for piece, _ in _cut([text])]


def pack(ids: Sequence[np.ndarray], context: int, vocabulary: int) -> np.ndarray:
    """Lay arrays of tokens, one after another, in rows [rows, context + 1].

    Row i holds tokens i * context to (i + 1) * context of the stream, both included: rows overlap by one, so that
    every token but the stream's first is predicted once. The last row is padded.

    Returns:
        uint16, or int32 for a vocabulary above 65,535.
    """
    stream = np.concatenate(ids) if ids else np.empty(0, dtype=np.int32)
    if len(stream) == 0:
        return np.empty((0, context + 1), dtype=_token_type(vocabulary))
    count = max(1, -(-(len(stream) - 1) // context))
    padded = np.full(count * context + 1, PAD, dtype=_token_type(vocabulary))
    padded[: len(stream)] = stream
    return np.lib.stride_tricks.sliding_window_view(padded, context + 1)[::context].copy()


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
            for group in _grouped(texts):
                split = self._split(np.arange(first, first + len(group)), given)
                yield _Group(given, [text for text, _ in group], [ends for _, ends in group], split)
                first += len(group)

    def _split(self, numbers: np.ndarray, given: str | None) -> np.ndarray:
        """Return each piece's index into `SPLITS`, by the rules of `shoal.data.prepare.splits_of`."""
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
            return ({TOKENS: rows} for rows in _packed(ids, self.options.context, tokenizer.vocabulary))

        return Part(read, split)

    def _ids(self, tokenizer: Tokenizer, split: str) -> Iterator[np.ndarray]:
        """Yield the tokens of a split, some pieces at a time."""
        for group in self._groups():
            mine = list(group.of(split))
            if mine:
                encoded = tokenizer.encode_many([text for text, _ in mine])
                ends = [_END if ends else _NOTHING for _, ends in mine]
                joined = np.concatenate([ids for pair in zip(encoded, ends, strict=True) for ids in pair])
                yield joined.astype(_token_type(tokenizer.vocabulary))

    def _estimate(self, tokenizer: Tokenizer, size: int) -> int:
        """Estimate the bytes of all rows, from the tokens per byte of the first pieces."""
        sample = next(self._groups()).texts
        tokens = sum(map(len, tokenizer.encode_many(sample))) / sum(len(utf8(text)) for text in sample)
        overlap = 1 + 1 / self.options.context
        return int(size * tokens * overlap * _token_type(tokenizer.vocabulary).itemsize)


_END = np.array([END], dtype=np.int32)
_NOTHING = np.empty(0, dtype=np.int32)


def _packed(ids: Iterable[np.ndarray], context: int, vocabulary: int) -> Iterator[np.ndarray]:
    """Pack a stream that comes in parts, in blocks of whole rows: the blocks follow each other as the rows do."""
    row_bytes = (context + 1) * _token_type(vocabulary).itemsize
    whole = max(1, BLOCK_BYTES // row_bytes) * context
    held: list[np.ndarray] = []
    is_first = True
    for part in ids:
        held.append(part)
        while sum(map(len, held)) > whole:
            stream = np.concatenate(held)
            yield pack([stream[: whole + 1]], context, vocabulary)
            held, is_first = [stream[whole:]], False
    if is_first or sum(map(len, held)) > 1:  # one token alone is the last of the block before
        yield pack(held, context, vocabulary)


def _grouped(documents: Iterable[Iterable[str]]) -> Iterator[list[tuple[str, bool]]]:
    """Yield pieces, and whether each ends its document, about `GROUP_CHARS` at a time."""
    group: list[tuple[str, bool]] = []
    size = 0
    for piece in (piece for document in documents for piece in _cut(document)):
        group.append(piece)
        size += len(piece[0])
        if size >= GROUP_CHARS:
            yield group
            group, size = [], 0
    if group:
        yield group


def _cut(document: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """Cut a document, which comes in chunks of any size; yield its pieces and whether each is its last."""
    rest = ""
    for chunk in document:
        rest, start = rest + chunk, 0
        while len(rest) - start > PIECE_CHARS:
            end = rest.rfind("\n", start, start + PIECE_CHARS) + 1 or start + PIECE_CHARS
            yield rest[start:end], False
            start = end
        rest = rest[start:]
    if rest:
        yield rest, True


def padded(tokenizer: Tokenizer, texts: list[str], context: int) -> np.ndarray:
    """Encode texts to [texts, context], cut or padded; one that is empty is a single END."""
    tokens = np.full((len(texts), context), PAD, dtype=_token_type(tokenizer.vocabulary))
    for row, ids in enumerate(_encoded(tokenizer, texts)):
        kept = ids[:context] if len(ids) else _END
        tokens[row, : len(kept)] = kept
    return tokens


def _encoded(tokenizer: Tokenizer, texts: Sequence[str]) -> Iterator[Ids]:
    """Encode each text, about `GROUP_CHARS` at a time."""
    group: list[str] = []
    size = 0
    for text in texts:
        group.append(text)
        size += len(text)
        if size >= GROUP_CHARS:
            yield from tokenizer.encode_many(group)
            group, size = [], 0
    yield from tokenizer.encode_many(group)


def _token_type(vocabulary: int) -> np.dtype:
    return np.dtype(np.uint16 if vocabulary <= 65_535 else np.int32)


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
