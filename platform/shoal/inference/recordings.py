"""Recordings as a caller of `Predictor.predict` passes them: encoded as text, as bytes of a file, or as waves.

It knows cells; independent of models. No path is followed: what is passed may come from the network.
"""

import base64
import binascii
import io
import wave as wave_files
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from shoal.data.audio import AudioFormat, as_16_bits
from shoal.data.loader import Batch
from shoal.data.packing import as_ragged
from shoal.data.preprocessing import Transform
from shoal.data.sources.encoded_audio import Encoded
from shoal.errors import DataError
from shoal.tasks.speech_recognition import SpeechRecognition


def as_waves(cells: Iterable[Any], audio: AudioFormat) -> np.ndarray:
    """Return a column of waves [samples] int16 at the rate of the model.

    Args:
        cells: each the base64 of an audio file, its bytes, a mapping {"bytes"} of them, or samples at the model's rate
            (whole numbers of 16 bits, or from -1 to 1).

    Raises:
        DataError: one cannot be decoded; the message has its number.
    """
    return as_ragged([wave_of(f"recording {row}", cell, audio) for row, cell in enumerate(cells)])


def waves_of_block(block: Mapping[str, Any], transform: Transform) -> dict[str, np.ndarray]:
    """Return the column of recordings, which may be encoded, as waves; the errors are those of `as_waves`."""
    column, audio = transform.columns[0].name, transform.audio
    assert audio is not None
    return {column: as_waves(block[column], audio)}


def transcripts(task: SpeechRecognition, heard: Iterable[tuple[Batch, Tensor]], beam: int) -> np.ndarray:
    """Return the text of each recording [rows], of views with a model's outputs."""
    texts = [text for view, outputs in heard for text in task.transcribe(outputs, view, beam)]
    return np.array(texts, dtype=object)


def wave_of(name: str, cell: Any, audio: AudioFormat) -> np.ndarray:
    """Return one wave [samples]; the arguments and errors are those of `as_waves`."""
    if isinstance(cell, Mapping):
        cell = cell.get("bytes")
    if isinstance(cell, str):
        try:
            cell = base64.b64decode(cell, validate=True)
        except (binascii.Error, ValueError):
            raise DataError(f"{name} is a text that is no base64: pass the base64 of an audio file") from None
    if isinstance(cell, bytes):
        return encoded_wave(Encoded(name, cell), audio)
    samples = np.asarray(cell)
    if samples.ndim != 1 or not len(samples) or samples.dtype.kind not in "iuf":
        raise DataError(
            f"{name} is no recording (type {type(cell).__name__}): pass the base64 or bytes of an audio file, or "
            f"samples at {audio.rate} per second"
        )
    return as_16_bits(samples) if samples.dtype.kind == "f" else samples.astype(np.int16)


def encoded_wave(encoded: Encoded, audio: AudioFormat) -> np.ndarray:
    """Return the wave of an encoded recording.

    Raises:
        DataError: it cannot be decoded, or is empty.
    """
    try:
        samples = encoded.wave(audio.rate)
    except ValueError as error:
        raise DataError(f"{encoded.name} cannot be read ({error})") from None
    if not len(samples):
        raise DataError(f"{encoded.name} holds no samples")
    return samples


def as_base64(samples: np.ndarray, rate: int) -> str:
    """Return a wave [samples] int16 as the base64 of a WAV file."""
    stream = io.BytesIO()
    with wave_files.open(stream, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())
    return base64.b64encode(stream.getvalue()).decode()


def joined(outputs: Sequence[Tensor]) -> Tensor:
    """Return outputs of several batches as one: those of recordings are filled up with zeros to the longest."""
    longest = max(part.shape[1] if part.ndim > 2 else 0 for part in outputs)
    filled = (F.pad(part, (0, 0, 0, longest - part.shape[1])) if part.ndim > 2 else part for part in outputs)
    return torch.cat(list(filled) if longest else list(outputs))
