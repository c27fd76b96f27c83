"""Text to token ids and back: bytes, or byte-level BPE fitted on texts.

Depends on strings alone; independent of files, documents and splits. An id stands for a string of bytes; the special
ids stand for none, so that text that spells a special token is ordinary text.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from shoal.errors import ConfigError, DataError, ModelError

if TYPE_CHECKING:
    import tokenizers


Ids = npt.NDArray[np.int32]

PAD, MASK, END = 0, 1, 2  # padding, a masked token, end of document
SPECIALS = 3
MIN_BPE_VOCABULARY = 300


class Tokenizer(ABC):
    """What every tokenizer does.

    Attributes:
        spelling: the UTF-8 bytes each id stands for; none for the special ids.
    """

    spelling: Sequence[bytes]

    @property
    def vocabulary(self) -> int:
        """The number of ids, the special ones included."""
        return len(self.spelling)

    def encode(self, text: str) -> Ids:
        """Return the ids [tokens] of a text; no special ids are among them.

        Raises:
            DataError: the text holds half a surrogate pair, which has no UTF-8.
        """
        return self.encode_many([text])[0]

    @abstractmethod
    def encode_many(self, texts: Sequence[str]) -> list[Ids]:
        """Return the ids of each text, as `encode` does."""

    def decode(self, ids: Iterable[int] | npt.NDArray[np.integer]) -> str:
        """Return the text of ids [tokens]: special ids are left out, invalid UTF-8 becomes U+FFFD."""
        spelled = b"".join(self.spelling[token] for token in np.asarray(ids, dtype=np.int64).tolist())
        return spelled.decode(errors="replace")

    @abstractmethod
    def to_json(self) -> str:
        """Return what `tokenizer_from_json` makes this tokenizer from."""


class ByteTokenizer(Tokenizer):
    """Each byte of the UTF-8 text is a token: byte b has the id b + 3."""

    def __init__(self) -> None:
        self.spelling = [b""] * SPECIALS + [bytes([byte]) for byte in range(256)]

    def encode_many(self, texts: Sequence[str]) -> list[Ids]:
        return [np.frombuffer(utf8(text), np.uint8) + np.int32(SPECIALS) for text in texts]

    def to_json(self) -> str:
        return json.dumps({"kind": "byte"})


class BPETokenizer(Tokenizer):
    """Byte-level byte-pair encoding (Sennrich et al. 2016, algorithm 1; over bytes as in GPT-2, section 2.2).

    The `tokenizers` library does the work. It has no special tokens, so that none can be spelled in a text: its id i is
    our id i + 3.
    """

    def __init__(self, inner: "tokenizers.Tokenizer") -> None:
        self._inner = inner
        byte = {letter: byte for byte, letter in enumerate(_letters())}
        size = inner.get_vocab_size()
        words = (inner.id_to_token(token) or "" for token in range(size))
        self.spelling = [b""] * SPECIALS + [bytes(byte[letter] for letter in word) for word in words]

    @classmethod
    def fit(cls, texts: Iterable[str], vocabulary: int) -> "BPETokenizer":
        """Fit merges on texts, until there are `vocabulary` ids or no pair occurs twice.

        Args:
            texts: iterated over once; a generator will do.
            vocabulary: number of ids, the special ones and the 256 bytes included.
        """
        from tokenizers import Tokenizer, models, pre_tokenizers, trainers

        inner = Tokenizer(models.BPE())
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary - SPECIALS,
            min_frequency=2,
            show_progress=False,
            initial_alphabet=_letters(),
        )
        inner.train_from_iterator(map(checked, texts), trainer)
        return cls(inner)

    def encode_many(self, texts: Sequence[str]) -> list[Ids]:
        encoded = self._inner.encode_batch_fast([checked(text) for text in texts], add_special_tokens=False)
        return [np.array(one.ids, dtype=np.int32) + np.int32(SPECIALS) for one in encoded]

    def to_json(self) -> str:
        return json.dumps({"kind": "bpe", "tokenizer": json.loads(self._inner.to_str())}, ensure_ascii=False)


def make_tokenizer(name: str, texts: Iterable[str]) -> Tokenizer:
    """Make a tokenizer by its name; a BPE is fitted on the texts.

    Raises:
        ConfigError: the name is neither `byte` nor `bpe:SIZE` with a SIZE from 300.
    """
    size = vocabulary_of(name)
    return ByteTokenizer() if name == "byte" else BPETokenizer.fit(texts, size)


def vocabulary_of(name: str) -> int:
    """Return the number of ids of a tokenizer by its name; a BPE that is fitted on little text has fewer.

    Raises:
        ConfigError: as `make_tokenizer`.
    """
    if name == "byte":
        return SPECIALS + 256
    kind, _, size = name.partition(":")
    if kind == "bpe" and size.isascii() and size.isdecimal() and int(size) >= MIN_BPE_VOCABULARY:
        return int(size)
    raise ConfigError(
        f"data.tokenizer='{name}' is not known: write byte, or bpe:SIZE with a whole number of at least "
        f"{MIN_BPE_VOCABULARY} tokens, e.g. bpe:4096"
    )


def tokenizer_from_json(text: str) -> Tokenizer:
    """Make a tokenizer from what its `to_json` returned.

    Raises:
        ModelError: the text is something else.
    """
    try:
        saved = json.loads(text)
        if saved["kind"] == "byte":
            return ByteTokenizer()
        if saved["kind"] == "bpe":
            from tokenizers import Tokenizer as Inner

            return BPETokenizer(Inner.from_str(json.dumps(saved["tokenizer"])))
    except Exception as error:  # the library raises bare exceptions
        raise ModelError(
            f"the tokenizer '{text[:40]}' does not read ({type(error).__name__}: {error}): "
            "pass what Tokenizer.to_json returned"
        ) from None
    raise ModelError(
        f"the tokenizer is of kind '{saved['kind']}': this version knows byte and bpe; use the version that saved it"
    )


def token_bytes(tokenizer: Tokenizer) -> Ids:
    """Return how many UTF-8 bytes each id stands for [vocabulary]; the special ids stand for 0."""
    return np.array([len(spelled) for spelled in tokenizer.spelling], dtype=np.int32)


def utf8(text: str) -> bytes:
    """Return a text's UTF-8.

    Raises:
        DataError: it holds half a surrogate pair, which has no UTF-8.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"a text holds half a surrogate pair, U+{ord(text[error.start]):04X}, as its character {error.start}: "
            "text must be valid Unicode; replace such characters, e.g. text.encode('utf-8', 'replace').decode()"
        ) from None


def checked(text: str) -> str:
    """Return the text unchanged.

    Raises:
        DataError: as `utf8`.
    """
    if not text.isascii():
        utf8(text)
    return text


def _letters() -> list[str]:
    """Return the letter of each byte in the library's vocabulary: GPT-2's printable alphabet.

    The printable bytes of Latin-1 are their own letters; the others have letters from U+0100 on, in order.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]
