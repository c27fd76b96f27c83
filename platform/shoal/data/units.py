"""What a recording's transcript is made of: characters or words of the training texts, bytes, or byte pairs.

Characters and words are those of the training texts alone, so that a text that holds others has no ids. Depends on
strings alone; independent of recordings.
"""

import json
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from shoal.data.tokenizer import SPECIALS, Ids, Tokenizer, make_tokenizer, tokenizer_from_json, utf8
from shoal.errors import ConfigError, DataError

Kind = Literal["char", "word"]
KINDS: tuple[Kind, ...] = ("char", "word")
MAX_WORDS = 50_000  # a row of outputs for each


class UnitTokenizer(Tokenizer):
    """Each character, or each word between blanks, is a token.

    Attributes:
        kind: char or word.
        units: those of the training texts, sorted; unit i has the id i + 3.
    """

    def __init__(self, kind: Kind, units: Sequence[str]) -> None:
        self.kind, self.units = kind, tuple(units)
        self.spelling = [b""] * SPECIALS + [utf8(unit) for unit in self.units]
        self._ids = {unit: number for number, unit in enumerate(self.units, SPECIALS)}

    @classmethod
    def fit(cls, kind: Kind, texts: Iterable[str]) -> "UnitTokenizer":
        """Collect the units of texts.

        Raises:
            ConfigError: there are too many words.
        """
        units = sorted({unit for text in texts for unit in units_of(kind, text)})
        if len(units) > MAX_WORDS:
            raise ConfigError(
                f"data.tokenizer={kind}: the training texts have {len(units)} different ones, more than {MAX_WORDS}: "
                "set data.tokenizer=char or bpe:SIZE"
            )
        return cls(kind, units)

    def encode_many(self, texts: Sequence[str]) -> list[Ids]:
        return [self._encoded(text) for text in texts]

    def _encoded(self, text: str) -> Ids:
        found = units_of(self.kind, text)
        unknown = next((unit for unit in found if unit not in self._ids), None)
        if unknown is not None:
            what = "character" if self.kind == "char" else "word"
            raise DataError(
                f"the text '{text[:60]}' has the {what} {unknown!r}, which no training text has; data.tokenizer=byte "
                "spells any"
            )
        return np.array([self._ids[unit] for unit in found], dtype=np.int32)

    def decode(self, ids: Iterable[int] | np.ndarray) -> str:
        found = [self.units[number - SPECIALS] for number in map(int, ids) if number >= SPECIALS]
        return ("" if self.kind == "char" else " ").join(found)

    def to_json(self) -> str:
        return json.dumps({"kind": self.kind, "units": self.units}, ensure_ascii=False)


def units_of(kind: Kind, text: str) -> list[str]:
    """Return a text's characters, or its words."""
    return list(text) if kind == "char" else text.split()


def make_units(name: str, texts: Iterable[str]) -> Tokenizer:
    """Make the units that `data.tokenizer` names, fitted on texts.

    Raises:
        ConfigError: the name is none of char, word, byte and bpe:SIZE.
    """
    for kind in KINDS:
        if name == kind:
            return UnitTokenizer.fit(kind, texts)
    try:
        return make_tokenizer(name, texts)
    except ConfigError as error:
        raise ConfigError(f"{error}; or char or word, with task=speech_recognition") from None


def units_from_json(text: str) -> Tokenizer:
    """Make units from what their `to_json` returned.

    Raises:
        ModelError: the text is something else.
    """
    for kind in KINDS:
        if text.startswith(f'{{"kind": "{kind}"'):
            return UnitTokenizer(kind, json.loads(text)["units"])
    return tokenizer_from_json(text)
