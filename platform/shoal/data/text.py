"""Text becomes rows of tokens: cut into pieces, encoded, packed."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from shoal.data.tokenizer import END, PAD, Ids, Tokenizer, make_tokenizer, tokenizer_from_json

PIECE_CHARS = 16 << 10
BLOCK_BYTES = 32 << 20
GROUP_CHARS = 1 << 20  # encoded at a time: the BPE library takes about 100 bytes per token while it works
TOKENS = "tokens"


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
        return np.empty((0, context + 1), dtype=token_dtype(vocabulary))
    count = max(1, -(-(len(stream) - 1) // context))
    padded = np.full(count * context + 1, PAD, dtype=token_dtype(vocabulary))
    padded[: len(stream)] = stream
    return np.lib.stride_tricks.sliding_window_view(padded, context + 1)[::context].copy()


END_IDS = np.array([END], dtype=np.int32)
NO_IDS = np.empty(0, dtype=np.int32)


def packed(ids: Iterable[np.ndarray], context: int, vocabulary: int) -> Iterator[np.ndarray]:
    """Pack a stream that comes in parts, in blocks of whole rows: the blocks follow each other as the rows do."""
    row_bytes = (context + 1) * token_dtype(vocabulary).itemsize
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


def grouped(documents: Iterable[Iterable[str]]) -> Iterator[list[tuple[str, bool]]]:
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
    return np.dtype(np.uint16 if vocabulary <= 65_535 else np.int32)
