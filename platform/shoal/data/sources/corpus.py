"""Documents become rows for a language model: pieces are divided among the splits, tokenized and packed.

It knows texts and their splits; independent of where the texts come from.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from shoal.data.sampler import SPLITS, TRAIN, SplitRule
from shoal.data.sources.base import Block, Part, Source
from shoal.data.text import (
    END_IDS,
    NO_IDS,
    PIECE_CHARS,
    TOKENS,
    TextOptions,
    grouped,
    packed,
    token_dtype,
)
from shoal.data.tokenizer import Tokenizer, utf8
from shoal.errors import DataError

# Parts of the documents: the split that the source states for them, or None, and the chunks of each one's text.
Documents = Iterator[tuple[str | None, Iterable[Iterable[str]]]]


class Group(NamedTuple):
    """Consecutive pieces.

    Attributes:
        source_split: that the source states; None: it states none.
        texts: of the pieces.
        ends: whether each piece ends its document.
        split: [pieces] index into `SPLITS`.
    """

    source_split: str | None
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
class Corpus:
    """Documents that can be read several times, and how their pieces become rows.

    Attributes:
        uri: of the source, for messages.
        read: starts reading anew.
        options: of the tokenizer and the rows.
        seed: of the splits.
        source_has_validation: whether the source states a validation split.
    """

    uri: str
    read: Callable[[], Documents]
    options: TextOptions
    seed: int
    source_has_validation: bool = False

    def source(self) -> Source:
        """Return a source with one part per split, blocks {"tokens": [rows, context + 1]}, and its tokenizer.

        Raises:
            DataError: there is no text, or none to train on.
        """
        sizes, hasher = self._measure()
        self._check(sizes)
        tokenizer = self.options.make_tokenizer(self._training_texts())
        saved = tokenizer.to_json()
        hasher.update(f"{self.options.context} {saved}".encode())
        return Source(
            self.uri,
            "text",
            tuple(self._part(tokenizer, split) for split, size in sizes.items() if size),
            nbytes=self._estimate(tokenizer, sum(sizes.values())),
            is_ready=True,
            digest=hasher.hexdigest()[:16],
            tokenizer=saved,
        )

    def _groups(self) -> Iterator[Group]:
        """Yield all pieces in order; their numbers, which determine the splits, run over all documents."""
        rule = SplitRule(self.seed, self.options.validation_fraction, self.options.test_fraction)
        first = 0
        for source_split, texts in self.read():
            for group in grouped(texts):
                numbers = np.arange(first, first + len(group))
                split = rule.assign(numbers, source_split, self.source_has_validation)
                yield Group(source_split, [text for text, _ in group], [ends for _, ends in group], split)
                first += len(group)

    def _measure(self) -> tuple[dict[str, int], "hashlib._Hash"]:
        """Read everything once: the bytes in each split, and a hash of the content."""
        sizes, hasher = np.zeros(len(SPLITS), dtype=np.int64), hashlib.sha256()
        for group in self._groups():
            encoded = [utf8(text) for text in group.texts]
            np.add.at(sizes, group.split, [len(text) for text in encoded])
            for text, ends in zip(encoded, group.ends, strict=True):
                hasher.update(f"{group.source_split} {len(text)} {ends} ".encode())
                hasher.update(text)
        return dict(zip(SPLITS, sizes.tolist(), strict=True)), hasher

    def _check(self, sizes: dict[str, int]) -> None:
        if not any(sizes.values()):
            raise DataError(f"data.source='{self.uri}' holds no text: name one with text in it")
        if not sizes[TRAIN] and self.options.trained_tokenizer is None:
            raise DataError(
                f"data.source='{self.uri}' has {sum(sizes.values())} bytes of text, and none is left to train on: "
                f"pieces of {PIECE_CHARS} characters are divided among the splits; give more text, or lower "
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
