"""Waves become log-mel spectrograms at one rate.

It knows samples; independent of files and of models.
"""

import functools
import math
from collections.abc import Iterable
from typing import TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from shoal.data.packing import as_ragged
from shoal.data.tokenizer import Tokenizer
from shoal.data.units import units_from_json

BANDS = 40  # of the mel scale
WINDOW_S, HOP_S = 0.025, 0.010  # of a frame, and from one to the next
LOWEST_HZ = 20.0
FULL_SCALE = 1 << 15  # of samples of 16 bits: what 1.0 is
FLOOR = 1e-6  # of a band's power: that of silence
MAX_RATE = 16_000  # speech has little above 8 kHz
# A model of speech returns an output for so many frames: 40 ms, as a syllable takes 150 to 250.
FRAMES_PER_OUTPUT = 4
Count = TypeVar("Count", int, Tensor)


class AudioFormat(BaseModel):
    """How recordings become what a model takes, as fitted on the training recordings.

    Attributes:
        rate: samples per second, to which all are resampled.
        units: of the transcripts, as JSON.
    """

    model_config = ConfigDict(frozen=True)
    rate: int
    units: str

    @property
    def tokenizer(self) -> Tokenizer:
        return _units(self.units)

    def frames(self, samples: int) -> int:
        """Return how many frames a recording of so many samples at `rate` has."""
        return 1 + samples // _hop(self.rate)

    def features(self, wave: np.ndarray) -> np.ndarray:
        """Return the log-mel spectrogram [frames, bands] of a wave [samples] at `rate`, int16; float16.

        Each band has mean 0 and deviation 1 over the recording, so that loudness and microphone do not matter.
        """
        bands = log_mel(torch.from_numpy(_as_float(wave)), self.rate)
        deviation, mean = torch.std_mean(bands, dim=0, correction=0)
        found: np.ndarray = ((bands - mean) / deviation.clamp(min=1e-3)).half().numpy()
        return found


def as_spectrograms(audio: AudioFormat, waves: Iterable[np.ndarray]) -> np.ndarray:
    """Return a column of spectrograms."""
    return as_ragged([audio.features(wave) for wave in waves])


@functools.lru_cache(maxsize=8)
def _units(saved: str) -> Tokenizer:
    return units_from_json(saved)


def resampled(wave: np.ndarray, own: int, rate: int) -> np.ndarray:
    """Return a wave [n] int16 at another rate, by a polyphase filter that keeps out what the new rate cannot hold."""
    if own == rate or not len(wave):
        return wave
    from scipy.signal import resample_poly  # takes 0.3 s to import

    divisor = math.gcd(own, rate)
    return as_16_bits(resample_poly(_as_float(wave), rate // divisor, own // divisor))


def as_16_bits(wave: np.ndarray) -> np.ndarray:
    """Return samples of -1 to 1 as whole numbers of 16 bits, as recordings are kept."""
    scaled = np.rint(wave * FULL_SCALE).clip(-FULL_SCALE, FULL_SCALE - 1)
    return np.asarray(scaled, dtype=np.int16)


def _as_float(wave: np.ndarray) -> np.ndarray:
    """Return samples of 16 bits as numbers from -1 to below 1."""
    return wave.astype(np.float32) / FULL_SCALE


def log_mel(wave: Tensor, rate: int) -> Tensor:
    """Return the logarithm of a wave's [samples] power in mel bands, [frames, bands]."""
    window = round(WINDOW_S * rate)
    spectrum = torch.stft(
        wave,
        n_fft=_points(rate),
        hop_length=_hop(rate),
        win_length=window,
        window=torch.hann_window(window),
        center=True,
        pad_mode="constant",
        return_complex=True,
    )
    power = torch.view_as_real(spectrum).square().sum(-1)
    return (filter_bank(rate) @ power).clamp(min=FLOOR).log().T


@functools.lru_cache(maxsize=8)
def filter_bank(rate: int) -> Tensor:
    """Return triangular filters [bands, points / 2 + 1], equally far apart on the mel scale.

    mel(f) = 2595 log10(1 + f / 700) (O'Shaughnessy 1987, "Speech Communication").
    """
    points = _points(rate)
    low_mel, high_mel = (2595 * math.log10(1 + hz / 700) for hz in (LOWEST_HZ, rate / 2))
    centres = 700 * (10 ** (torch.linspace(low_mel, high_mel, BANDS + 2, dtype=torch.float64) / 2595) - 1)
    hz = torch.arange(points // 2 + 1, dtype=torch.float64) * rate / points
    low, middle, high = (centres[first : first + BANDS, None] for first in range(3))
    rising, falling = (hz - low) / (middle - low), (high - hz) / (high - middle)
    return torch.minimum(rising, falling).clamp(min=0).float()


def outputs_of(frames: Count) -> Count:
    """Return how many outputs there are for so many frames."""
    return (frames + FRAMES_PER_OUTPUT - 1) // FRAMES_PER_OUTPUT


def _hop(rate: int) -> int:
    return round(HOP_S * rate)


def _points(rate: int) -> int:
    """Return the points of a Fourier transform: the next power of 2 from a window on."""
    return int(1 << (round(WINDOW_S * rate) - 1).bit_length())
