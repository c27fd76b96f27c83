"""Text becomes rows of tokens: divided into pieces, encoded, packed.

Depends on the tokenizer; independent of files, splits and tasks.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from shoal.data.tokenizer import END, PAD, Ids, Tokenizer, make_tokenizer, tokenizer_from_json

PIECE_CHARS = 16 << 10  # of a piece, the unit that is divided among the splits
BLOCK_BYTES = 32 << 20  # of a block of packed rows
GROUP_CHARS = 1 << 20  # encoded at a time: the BPE library takes about 100 bytes per token while it works
TOKENS = "tokens"  # the column of token ids
END_IDS = np.array([END], dtype=np.int32)
NO_IDS = np.empty(0, dtype=np.int32)


@dataclass(frozen=True)
class TextOptions:
    """What determines how text becomes rows, besides the text and the seed.

    Attributes:
        context: tokens per sequence.
        tokenizer: its name, for `make_tokenizer`.
        validation_fraction: share of the pieces held out while training.
        test_fraction: share of the pieces held out to the end.
        trained_tokenizer: a trained model's tokenizer, as JSON; then none is fitted.
    """

    context: int
    tokenizer: str = "byte"
    validation_fraction: float = 0.1
    test_fraction: float = 0.1
    trained_tokenizer: str | None = None

    def make_tokenizer(self, texts: Iterable[str]) -> Tokenizer:
        if self.trained_tokenizer is not None:
            return tokenizer_from_json(self.trained_tokenizer)
        return make_tokenizer(self.tokenizer, texts)


def pack(ids: Sequence[np.ndarray], context: int, vocabulary: int) -> np.ndarray:
    """Pack arrays of tokens, one after another, into rows [rows, context + 1].

    Row i holds tokens i * context to (i + 1) * context of the stream, both included: rows overlap by one token, so that
    every token but the stream's first is predicted once. The last row is padded.

    Returns:
        uint16, or int32 for a vocabulary above 65,535.
    """
    stream = np.concatenate(ids) if ids else np.empty(0, dtype=np.int32)
    if len(stream) == 0:
        return np.empty((0, context + 1), dtype=token_dtype(vocabulary))
    count = max(1, -(-(len(stream) - 1) // context))
    padded = np.full(count * context + 1, PAD, dtype=token_dtype(vocabulary))
    padded[: len(stream)] = stream
    return np.lib.stride_tricks.sliding_window_view(padded, context + 1)[::context].copy()


def packed(ids: Iterable[np.ndarray], context: int, vocabulary: int) -> Iterator[np.ndarray]:
    """Pack a stream that arrives in parts, and yield blocks of complete rows in order."""
    row_bytes = (context + 1) * token_dtype(vocabulary).itemsize
    block_tokens = max(1, BLOCK_BYTES // row_bytes) * context
    held: list[np.ndarray] = []
    is_first = True
    for part in ids:
        held.append(part)
        while sum(map(len, held)) > block_tokens:
            stream = np.concatenate(held)
            yield pack([stream[: block_tokens + 1]], context, vocabulary)
            held, is_first = [stream[block_tokens:]], False
    if is_first or sum(map(len, held)) > 1:  # a single token is also the last one of the block before
        yield pack(held, context, vocabulary)


def grouped(documents: Iterable[Iterable[str]]) -> Iterator[list[tuple[str, bool]]]:
    """Yield pieces, and whether each ends its document, about `GROUP_CHARS` at a time."""
    group: list[tuple[str, bool]] = []
    size = 0
    for piece in (piece for document in documents for piece in _split_document(document)):
        group.append(piece)
        size += len(piece[0])
        if size >= GROUP_CHARS:
            yield group
            group, size = [], 0
    if group:
        yield group


def _split_document(document: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """Divide a document into pieces of at most `PIECE_CHARS` characters, at line ends where it has them.

    The pieces, joined, are the document. Of the text behind a piece, only whether there is any matters: appended text
    leaves all pieces but the last unchanged.

    Args:
        document: its text, in chunks of any size.

    Returns:
        each piece, and whether it is the last.
    """
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
    """Encode texts to [texts, context], truncated or padded; an empty one is a single END."""
    tokens = np.full((len(texts), context), PAD, dtype=token_dtype(tokenizer.vocabulary))
    for row, ids in enumerate(_encoded(tokenizer, texts)):
        kept = ids[:context] if len(ids) else END_IDS
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


def token_dtype(vocabulary: int) -> np.dtype:
    """Return the smallest type that rows of a vocabulary are stored in."""
    return np.dtype(np.uint16 if vocabulary <= 65_535 else np.int32)
