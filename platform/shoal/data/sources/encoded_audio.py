"""Decodes recordings: WAV, FLAC, OGG, MP3 and other formats that libsndfile reads, mixed to one channel.

It knows bytes and files; independent of lists, of texts and of what a model takes.
"""

import io
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from shoal.data.audio import as_16_bits, resampled
from shoal.data.sources.base import filesystem_of
from shoal.errors import DataError

SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au", ".sph", ".w64")
KNOWN_TO_THE_SAMPLE = ("FLAC", "WAV", "AIFF", "AU", "W64", "NIST")  # formats whose header states the length
# Encodings whose samples libsndfile gives as they are.
WITHIN_16_BITS = ("PCM_16", "PCM_S8", "PCM_U8", "ULAW", "ALAW")


@dataclass(frozen=True)
class Encoded:
    """A recording that is not decoded yet.

    Attributes:
        name: in messages.
        data: a path, or the bytes of a file.
        start_s: where it begins in the file.
        duration_s: how long it is; None: to the end of the file.
    """

    name: str
    data: str | bytes
    start_s: float = 0.0
    duration_s: float | None = None

    def rate(self) -> int:
        """Return the samples per second that the header states.

        Raises:
            ValueError: the file cannot be read.
        """
        with _opened(self.data) as file:
            return int(file.samplerate)

    def wave(self, rate: int) -> np.ndarray:
        """Return the samples [n] at a rate, int16, channels mixed.

        Raises:
            ValueError: the file cannot be read, or ends before its header says.
        """
        samples, own = self.decoded()
        return resampled(samples, own, rate)

    def decoded(self) -> tuple[np.ndarray, int]:
        """Return the samples at the recording's own rate, and that rate; errors are those of `wave`."""
        with _opened(self.data) as file:
            own, stated = int(file.samplerate), file.frames
            first = round(self.start_s * own)
            count = -1 if self.duration_s is None else round(self.duration_s * own)
            samples = _samples(file, first, count)
            is_short = len(samples) < (stated - first if count < 0 else count)
            if is_short and file.format in KNOWN_TO_THE_SAMPLE:
                raise ValueError(
                    f"it ends after {(first + len(samples)) / own:.2f} s, and should have "
                    f"{(stated if count < 0 else first + count) / own:.2f}"
                )
        return _mixed(samples), own


def _opened(data: str | bytes) -> Any:
    """Open a file of soundfile's.

    Raises:
        DataError: the package is missing.
        ValueError: the file cannot be read.
    """
    try:
        import soundfile
    except (ImportError, OSError):  # the second: the package is there, libsndfile is not
        raise DataError("recordings need the 'soundfile' package: pip install 'shoal[speech]'") from None
    try:
        if isinstance(data, str) and "://" not in data:
            return soundfile.SoundFile(data)
        return soundfile.SoundFile(io.BytesIO(data if isinstance(data, bytes) else _fetched(data)))
    except (OSError, RuntimeError) as error:
        raise ValueError(_unopened(data) or _reason(error)) from None


def _fetched(uri: str) -> bytes:
    filesystem, inner = filesystem_of(uri)
    with filesystem.open_input_stream(inner) as stream:
        return bytes(stream.read())


def _samples(file: Any, first: int, count: int) -> np.ndarray:
    """Return samples [n] or [n, channels]: int16 as they are encoded, of one channel, else float32.

    Raises:
        ValueError: they cannot be decoded.
    """
    try:
        if first:
            file.seek(min(first, file.frames))
        is_exact = file.channels == 1 and file.subtype in WITHIN_16_BITS
        return np.asarray(file.read(count, dtype="int16" if is_exact else "float32"))
    except RuntimeError as error:
        raise ValueError(_reason(error)) from None


def _mixed(samples: np.ndarray) -> np.ndarray:
    """Return samples [n] or [n, channels] of one channel and 16 bits.

    Raises:
        ValueError: some are no numbers.
    """
    if samples.dtype == np.int16:
        return samples
    mixed = samples if samples.ndim == 1 else samples.mean(axis=1, dtype=np.float32)
    if not np.isfinite(mixed).all():
        raise ValueError("it holds samples that are no numbers")
    return as_16_bits(mixed)


def _unopened(data: str | bytes) -> str | None:
    """Return why a file did not open, where that is not for libsndfile to say."""
    if isinstance(data, bytes) or "://" in data:
        return None if data else "it is empty (0 bytes)"
    if not os.path.exists(data):
        return "there is no such file"
    return None if os.path.getsize(data) else "it is empty (0 bytes)"


def _reason(error: Exception) -> str:
    """Return what libsndfile says, without the name of the file."""
    text = str(getattr(error, "error_string", "") or error)
    return " ".join(text.split()).rstrip(".")
