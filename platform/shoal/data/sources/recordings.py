"""Recordings and their texts, as a source lists them: a column of a table, or files of `shoal.data.sources.audio`.

It knows names, texts and splits; independent of what a recording sounds like and of how it is decoded.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from shoal.data.sources.base import Block, Source, check_column
from shoal.data.sources.encoded_audio import Encoded
from shoal.data.values import is_missing
from shoal.errors import DataError, nearest

# As tables call their columns, the likeliest first.
PATHS = (
    "path",
    "file",
    "filename",
    "file_name",
    "audio",
    "audio_filepath",
    "audio_file",
    "audio_path",
    "wav_filename",
    "wav",
)
TEXTS = ("sentence", "text", "transcript", "transcription", "normalized_text")
SPEAKERS = ("speaker", "client_id", "speaker_id")
SPLIT_COLUMNS = ("split", "subset")


class Sound(Protocol):
    """A recording that can be heard; `shoal.data.sources.encoded_audio.Encoded` is one."""

    @property
    def name(self) -> str: ...

    def rate(self) -> int:
        """Return its own samples per second; it raises as `wave`."""
        ...

    def wave(self, rate: int) -> np.ndarray:
        """Return its samples [n] at a rate, int16.

        Raises:
            ValueError: with the reason why there are none.
        """
        ...

    def decoded(self) -> tuple[np.ndarray, int]:
        """Return its samples at its own rate, and that rate; it raises as `wave`."""
        ...


@dataclass(frozen=True)
class Recording:
    """A recording and what is said in it.

    Attributes:
        text: empty where there is none.
        split: that the source states; None: it states none.
        speaker: where the source names speakers.
    """

    sound: Sound
    text: str
    split: str | None = None
    speaker: str | None = None


def clean(text: Any) -> str:
    """Return a text with single blanks between its words; empty for a missing one."""
    return "" if text is None else " ".join(str(text).split())


def find_column(uri: str, names: tuple[str, ...], columns: list[str], what: str, key: str) -> str:
    """Return the first of some names that a table has.

    Raises:
        DataError: it has none.
    """
    lower = {column.lower(): column for column in columns}
    found = next((lower[name] for name in names if name in lower), None)
    if found is None:
        raise DataError(
            f"data.source='{uri}' has no column of {what} ({', '.join(names)}){nearest(names[0], columns)}: its "
            f"columns are {', '.join(columns[:20])}; {key}"
        )
    return found


def text_names(label: str) -> tuple[str, ...]:
    """Return how the column of texts may be called: as the config says, else as tables call it."""
    return tuple(dict.fromkeys((label.lower(), *TEXTS)))


def recordings_of_columns(source: Source, label: str) -> tuple[Recording, ...]:
    """Return the recordings of a column of encoded ones, as the Hub's data sets and parquet files have them.

    Args:
        source: rows with a column of bytes, or of mappings {"bytes", "path"} as Hugging Face's Audio feature has them.
        label: the column of the texts, if there is one of that name.

    Raises:
        DataError: there is no such column, or none of texts.
    """
    found: list[Recording] = []
    for split, block in source.blocks():
        columns = list(block)
        audio = next((name for name in columns if _holds_recordings(block[name])), None)
        if audio is None:
            raise DataError(
                f"data.source='{source.uri}' has no column of encoded recordings (bytes, or {{bytes, path}}): its "
                f"columns are {', '.join(columns[:20])}; name audio:PATH, a folder of recordings with a table"
            )
        text = find_column(source.uri, text_names(label), columns, "texts", "set data.label")
        check_column(source.uri, "data.label", text, block)
        speaker = next((name for name in SPEAKERS if name in block), None)
        first = len(found)
        found += [
            Recording(
                _encoded(f"row {first + row}", block[audio][row]),
                _text(block, text, row),
                split,
                None if speaker is None else str(block[speaker][row]),
            )
            for row in range(len(block[audio]))
        ]
    return tuple(found)


def _holds_recordings(column: np.ndarray) -> bool:
    first = next((value for value in column if value is not None), None) if column.dtype == object else None
    return isinstance(first, bytes) or (isinstance(first, Mapping) and "bytes" in first)


def _encoded(name: str, value: Any) -> Encoded:
    """Wrap a cell; a missing one is no bytes, which cannot be read."""
    data, path = (value.get("bytes"), value.get("path")) if isinstance(value, Mapping) else (value, None)
    named = f"{name} ('{path}')" if path else name
    return Encoded(named, bytes(data) if data is not None else str(path) if path else b"")


def _text(block: Block, column: str, row: int) -> str:
    return "" if is_missing(block[column][row : row + 1])[0] else clean(block[column][row])
