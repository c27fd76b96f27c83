"""Lists the recordings of `synthetic:speech?...`: strings of digits, spoken by a synthesiser."""

import functools
from dataclasses import dataclass

import numpy as np

from shoal.data.audio import as_16_bits, resampled
from shoal.data.formants import DIGITS, RATE, Voice, joined, spoken, with_noise
from shoal.data.sources.recordings import Recording
from shoal.data.sources.synthetic import parse_options
from shoal.errors import DataError

NAME = "speech"
OPTIONS = {"rows": 1000, "voices": 50, "seed": 0}
FEWEST, MOST = 3, 7  # digits of a string
TAKES = 3  # of a word by a voice
WORDS, VOICES, STRINGS = 1, 2, 3  # keep the draws of each apart


@dataclass(frozen=True)
class DigitString:
    """One string; all of it is a function of its number and the seed."""

    number: int
    voices: int
    seed: int

    @property
    def name(self) -> str:
        return f"row {self.number}"

    def digits(self) -> list[str]:
        draw = self._draw()
        count = draw.integers(FEWEST, MOST + 1)
        return [list(DIGITS)[digit] for digit in draw.integers(0, len(DIGITS), count)]

    def rate(self) -> int:
        return RATE

    def wave(self, rate: int) -> np.ndarray:
        digits, draw = self.digits(), self._draw(1)
        voice = int(draw.integers(0, self.voices))
        words = [_word(self.seed, voice, digit, int(draw.integers(0, TAKES))) for digit in digits]
        wave = joined(words, draw.uniform(0.02, 0.15, len(words) + 1))
        noisy = with_noise(wave, draw.uniform(0.1, 0.9), draw.uniform(15, 35), draw)
        return resampled(as_16_bits(noisy), RATE, rate)

    def decoded(self) -> tuple[np.ndarray, int]:
        return self.wave(RATE), RATE

    def _draw(self, stream: int = 0) -> np.random.Generator:
        return np.random.default_rng([self.seed, STRINGS, self.number, stream])


@functools.lru_cache(maxsize=1 << 12)
def _word(seed: int, voice: int, digit: str, take: int) -> np.ndarray:
    who = Voice.drawn(np.random.default_rng([seed, VOICES, voice]))
    draw = np.random.default_rng([seed, WORDS, voice, list(DIGITS).index(digit), take])
    return spoken(digit, who, draw)


def list_spoken(uri: str, location: str) -> tuple[Recording, ...]:
    """List strings of spoken digits.

    Args:
        uri: as the user wrote it.
        location: `speech?rows=...&voices=...&seed=...`.

    Raises:
        DataError: it is another kind of synthetic data, or an option is not understood.
    """
    kind, _, query = location.partition("?")
    if kind != NAME:
        raise DataError(f"data.source='{uri}' is not of recordings: write synthetic:{NAME}, or audio:PATH")
    options = parse_options(uri, query, OPTIONS)
    strings = (DigitString(row, options["voices"], options["seed"]) for row in range(options["rows"]))
    return tuple(Recording(string, " ".join(string.digits())) for string in strings)
