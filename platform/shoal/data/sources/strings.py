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
from shoal.data.sources.recordings import Recording

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
    """A decoded recording, which is heard several times."""

    name: str
    own_rate: int
    samples: np.ndarray

    def rate(self) -> int:
        return self.own_rate

    def wave(self, rate: int) -> np.ndarray:
        return resampled(self.samples, self.own_rate, rate)

    def decoded(self) -> tuple[np.ndarray, int]:
        return self.samples, self.own_rate

    def at_speed(self, tenths: int) -> "Held":
        """Return what it is when it is heard at another speed, and pitch."""
        return Held(self.name, self.own_rate, resampled(self.samples, tenths, SPEED))


@dataclass(frozen=True)
class Composite:
    """Recordings one after the other, with silence around each."""

    name: str
    parts: tuple[Held, ...]
    gaps_s: tuple[float, ...]

    def rate(self) -> int:
        return self.parts[0].rate()

    def wave(self, rate: int) -> np.ndarray:
        return joined([part.wave(rate) for part in self.parts], np.array(self.gaps_s), rate)

    def decoded(self) -> tuple[np.ndarray, int]:
        return self.wave(self.rate()), self.rate()


def composed(
    recordings: Sequence[Recording], sounds: Sequence[Held], split: str, how: Compose
) -> list[Recording]:
    """Return strings of the recordings of one split.

    Args:
        recordings: what is said, and by whom.
        sounds: of each, at one rate.
    """
    of_speaker: dict[str | None, list[int]] = {}
    for number, one in enumerate(recordings):
        of_speaker.setdefault(one.speaker, []).append(number)
    speeds = SPEEDS if split == TRAIN else (SPEED,)
    # Each is heard in many strings, and resampled once.
    heard = [{speed: sound.at_speed(speed) for speed in speeds} for sound in sounds]
    strings = []
    for number in range(len(recordings) * (TRAINING_STRINGS if split == TRAIN else 1)):
        draw = np.random.default_rng([how.seed, SPLITS.index(split), number])
        # Each recording as likely as the others: a speaker by how many there are of them.
        speaker = recordings[int(draw.integers(0, len(recordings)))].speaker
        own = of_speaker[speaker]
        chosen = [own[place] for place in draw.integers(0, len(own), draw.integers(how.fewest, how.most + 1))]
        parts = tuple(heard[one][int(draw.choice(speeds))] for one in chosen)
        gaps_s = tuple(draw.uniform(0, LONGEST_GAP_S, len(chosen) + 1).tolist())
        text = " ".join(recordings[one].text for one in chosen)
        strings.append(
            Recording(Composite(f"string {number} of {split}", parts, gaps_s), text, split, speaker)
        )
    return strings
