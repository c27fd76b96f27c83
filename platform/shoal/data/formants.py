"""A small formant synthesiser that speaks the ten digits: for tests and first runs, without a download.

Vowels are sums of harmonics under the resonances of a vocal tract, hisses are filtered noise (Klatt 1980, "Software for
a cascade/parallel formant synthesizer"). It knows numbers alone; independent of sources and models.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

RATE = 8000  # samples per second
STEP = 40  # samples from one frame of parameters to the next: 5 ms
BANDWIDTHS = np.array([80.0, 100.0, 140.0])  # of the resonances, in Hz
HISS_WIDTH = 700.0  # of filtered noise, in Hz
GLIDE, FADE = 8, 3  # frames over which resonances and loudness change
SILENCE = 1e-3  # of a recording's noise, at least


class Phone(NamedTuple):
    """One sound.

    Attributes:
        duration_s: at a speed of 1.
        formants: the three lowest resonances, in Hz.
        voice: loudness of the harmonics.
        hiss: loudness of the noise.
        centre: of the noise, in Hz.
    """

    duration_s: float
    formants: tuple[float, float, float]
    voice: float = 1.0
    hiss: float = 0.0
    centre: float = 2500.0


# Vowels: Peterson and Barney 1952, "Control methods used in a study of the vowels", table II, men.
PHONES = {
    "IY": Phone(0.16, (270, 2290, 3010)),
    "IH": Phone(0.10, (390, 1990, 2550)),
    "EH": Phone(0.11, (530, 1840, 2480)),
    "AH": Phone(0.12, (640, 1190, 2390)),
    "AA": Phone(0.12, (730, 1090, 2440)),
    "AO": Phone(0.14, (570, 840, 2410)),
    "UW": Phone(0.16, (300, 870, 2240)),
    "UH": Phone(0.09, (440, 1020, 2240)),
    "AX": Phone(0.07, (500, 1500, 2500), 0.8),
    "W": Phone(0.07, (290, 610, 2150), 0.6),
    "R": Phone(0.08, (310, 1060, 1380), 0.7),
    "N": Phone(0.09, (250, 1300, 2300), 0.45),
    "V": Phone(0.06, (220, 1100, 2080), 0.4, 0.08, 2200.0),
    "Z": Phone(0.09, (240, 1390, 2530), 0.3, 0.25, 3600.0),
    "S": Phone(0.12, (320, 1390, 2530), 0.0, 0.45, 3700.0),
    "F": Phone(0.10, (340, 1100, 2080), 0.0, 0.16, 2600.0),
    "TH": Phone(0.09, (320, 1290, 2540), 0.0, 0.12, 3000.0),
    "-": Phone(0.045, (400, 1600, 2600), 0.0),
    "T": Phone(0.03, (400, 1800, 2600), 0.0, 0.5, 3400.0),
    "K": Phone(0.03, (350, 1700, 2400), 0.0, 0.4, 1900.0),
}
DIGITS = {
    "zero": "Z IH R AO UW",
    "one": "W AH N",
    "two": "- T UW",
    "three": "TH R IY",
    "four": "F AO R",
    "five": "F AA IH V",
    "six": "S IH - K S",
    "seven": "S EH V AX N",
    "eight": "EH IH - T",
    "nine": "N AA IH N",
}


@dataclass(frozen=True)
class Voice:
    """Who speaks.

    Attributes:
        pitch_hz: of the voice.
        tract: by which resonances are multiplied: above 1 for a short vocal tract.
        speed: by which sounds are shortened.
        breath: loudness of noise in vowels.
    """

    pitch_hz: float
    tract: float
    speed: float
    breath: float

    @classmethod
    def drawn(cls, draw: np.random.Generator) -> "Voice":
        """Draw a voice; high ones have short tracts."""
        height = draw.uniform()
        return cls(
            pitch_hz=90 * 2 ** (1.3 * height + draw.uniform(-0.1, 0.1)),
            tract=0.9 + 0.25 * height + draw.uniform(-0.04, 0.04),
            speed=draw.uniform(0.8, 1.3),
            breath=draw.uniform(0.0, 0.05),
        )


def spoken(digit: str, voice: Voice, draw: np.random.Generator) -> np.ndarray:
    """Return the samples [n] of a word, float32, at `RATE`."""
    phones = [PHONES[name] for name in DIGITS[digit].split()]
    frames = [
        max(2, round(phone.duration_s * draw.uniform(0.85, 1.15) / voice.speed * RATE / STEP))
        for phone in phones
    ]
    formants = _glided(np.repeat([phone.formants for phone in phones], frames, axis=0), GLIDE) * voice.tract
    loudness = _glided(
        np.repeat([[phone.voice, phone.hiss + voice.breath] for phone in phones], frames, axis=0), FADE
    )
    centres = np.repeat([phone.centre for phone in phones], frames)
    voiced = _harmonics(formants, loudness[:, 0], voice.pitch_hz * draw.uniform(0.95, 1.05))
    return np.asarray(voiced + _hiss(centres, loudness[:, 1], draw), dtype=np.float32)


def _glided(track: np.ndarray, width: int) -> np.ndarray:
    """Smooth [frames, ...] over a number of frames."""
    window = np.hanning(width + 2)[1:-1]
    window /= window.sum()
    padded = np.pad(track, ((width // 2, width - 1 - width // 2), (0, 0)), mode="edge")
    return np.asarray(np.lib.stride_tricks.sliding_window_view(padded, width, axis=0) @ window)


def _harmonics(formants: np.ndarray, loudness: np.ndarray, pitch_hz: float) -> np.ndarray:
    """Return the sum of a falling pitch's harmonics [frames * STEP], each as loud as the resonances let it be."""
    frames = len(formants)
    pitch = pitch_hz * np.linspace(1.08, 0.9, frames)
    numbers = np.arange(1, int(0.95 * RATE / 2 / pitch.max()) + 1)
    hz = pitch[:, None] * numbers
    gains = np.ones_like(hz)
    for resonance, width in enumerate(BANDWIDTHS):
        centre = formants[:, resonance, None]
        gains *= centre**2 / np.hypot(centre**2 - hz**2, hz * width)
    gains *= loudness[:, None] / numbers
    times = np.arange(frames * STEP) / STEP
    phase = 2 * np.pi * np.cumsum(np.interp(times, np.arange(frames), pitch)) / RATE
    wave = np.zeros(frames * STEP)
    for number, gain in zip(numbers, gains.T, strict=True):
        wave += np.interp(times, np.arange(frames), gain) * np.sin(number * phase)
    return 0.15 * wave


def _hiss(centres: np.ndarray, loudness: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """Return noise [frames * STEP] around a frequency that changes from frame to frame."""
    frames, size = len(centres), 2 * STEP
    hz = np.fft.rfftfreq(size, 1 / RATE)
    shape = np.exp(-(((hz - centres[:, None]) / HISS_WIDTH) ** 2)) * loudness[:, None]
    parts = np.fft.irfft(np.fft.rfft(draw.standard_normal((frames, size))) * shape, size) * np.hanning(size)
    wave = np.zeros((frames + 1) * STEP)
    wave[:-STEP] += parts[:, :STEP].ravel()
    wave[STEP:] += parts[:, STEP:].ravel()
    return wave[:-STEP]


def joined(words: list[np.ndarray], gaps_s: np.ndarray, rate: int = RATE) -> np.ndarray:
    """Return words with silence before each and after the last."""
    gaps = [np.zeros(round(gap * rate), dtype=words[0].dtype) for gap in gaps_s]
    parts = [part for pair in zip(gaps, words, strict=False) for part in pair]
    return np.concatenate([*parts, gaps[-1]])


def with_noise(wave: np.ndarray, level: float, ratio_db: float, draw: np.random.Generator) -> np.ndarray:
    """Return a wave with its peak at a level, and noise that is so much weaker than it."""
    scaled = wave * (level / max(float(np.abs(wave).max()), 1e-9))
    power = float(np.square(scaled).mean()) / 10 ** (ratio_db / 10)
    noise = max(power**0.5, SILENCE * level) * draw.standard_normal(len(wave))
    return np.asarray(scaled + noise, dtype=np.float32)
