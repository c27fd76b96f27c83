"""Single recordings strung together to longer ones, as `data.compose` says: words to strings of words.

A string is made of recordings of one split and, where the source names speakers, of one speaker. Which ones they are is
a function of the seed, the split and the string's number. Training recordings are heard at several speeds. It knows
waves and texts; independent of files.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shoal.data.audio import resampled
from shoal.data.formants import joined
from shoal.data.sampler import SPLITS, TRAIN
from shoal.data.sources.recordings import Recording, Sound

LONGEST_GAP_S = 0.1  # of silence between two recordings
# At which training recordings are heard, in tenths (Ko et al. 2015, "Audio augmentation for speech recognition").
SPEEDS, SPEED = (9, 10, 11), 10
TRAINING_STRINGS = 10  # for each training recording; of the others one


@dataclass(frozen=True)
class Compose:
    """How strings are made.

    Attributes:
        fewest: recordings of a string.
        most: of a string.
        seed: of the draws.
    """

    fewest: int
    most: int
    seed: int


@dataclass(frozen=True, eq=False)
class Held:
    """A decoded recording: each is heard in many strings."""

    name: str
    own_rate: int
    samples: np.ndarray

    def rate(self) -> int:
        return self.own_rate

    def wave(self, rate: int) -> np.ndarray:
        """Return its samples; the rate is its own."""
        return self.samples


@dataclass(frozen=True)
class Composite:
    """Recordings one after the other, with silence around each.

    Attributes:
        speeds: of each, in tenths.
    """

    name: str
    parts: tuple[Sound, ...]
    gaps_s: tuple[float, ...]
    speeds: tuple[int, ...]

    def rate(self) -> int:
        return self.parts[0].rate()

    def wave(self, rate: int) -> np.ndarray:
        pairs = zip(self.parts, self.speeds, strict=True)
        waves = [resampled(part.wave(rate), speed, SPEED) for part, speed in pairs]
        return joined(waves, np.array(self.gaps_s), rate)


def composed(recordings: Sequence[Recording], split: str, how: Compose) -> list[Recording]:
    """Return strings of the recordings of one split."""
    of_speaker: dict[str | None, list[int]] = {}
    for number, one in enumerate(recordings):
        of_speaker.setdefault(one.speaker, []).append(number)
    count = len(recordings) * (TRAINING_STRINGS if split == TRAIN else 1)
    return [_string(recordings, of_speaker, split, how, number) for number in range(count)]


def _string(
    recordings: Sequence[Recording],
    of_speaker: dict[str | None, list[int]],
    split: str,
    how: Compose,
    number: int,
) -> Recording:
    draw = np.random.default_rng([how.seed, SPLITS.index(split), number])
    # Each recording as likely as the others: a speaker by how many there are of them.
    speaker = recordings[int(draw.integers(0, len(recordings)))].speaker
    own = of_speaker[speaker]
    chosen = [
        recordings[own[place]]
        for place in draw.integers(0, len(own), draw.integers(how.fewest, how.most + 1))
    ]
    sound = Composite(
        f"string {number} of {split}",
        tuple(one.sound for one in chosen),
        tuple(draw.uniform(0, LONGEST_GAP_S, len(chosen) + 1).tolist()),
        tuple(draw.choice(SPEEDS, len(chosen)).tolist()) if split == TRAIN else (SPEED,) * len(chosen),
    )
    return Recording(sound, " ".join(one.text for one in chosen), split, speaker)
