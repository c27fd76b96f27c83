"""Texts from the outputs of a CTC model, and how far they are from what was said.

The blank is unit 0 (Graves et al. 2006, "Connectionist temporal classification"). It knows probabilities and ids;
independent of recordings and models.
"""

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

BLANK = 0
WORTH_A_LOOK = 1e-4  # probability of a unit at a step, below which a beam does not take it


def emissions(best: np.ndarray) -> list[tuple[int, int]]:
    """Return (place, unit) where the likeliest path begins a unit: repeats joined, blanks left out.

    Args:
        best: [outputs] likeliest unit of each.
    """
    changes = np.flatnonzero(np.diff(best, prepend=-1))
    return [(int(place), int(best[place])) for place in changes if best[place] != BLANK]


def greedy(best: np.ndarray) -> list[int]:
    """Return the units of `emissions`."""
    return [unit for _, unit in emissions(best)]


def beam_search(log_probabilities: np.ndarray, width: int) -> list[int]:
    """Return the likeliest units by prefix beam search: the sum over all paths that spell them.

    This is algorithm 1 of Hannun et al. 2014, "First-pass large vocabulary continuous speech recognition using
    bi-directional recurrent DNNs", without a language model. With a width of all prefixes it is exact.

    Args:
        log_probabilities: [outputs, units].
        width: prefixes that are kept after each output.
    """
    # By prefix, the logarithms of the probability of the paths that end in a blank, and in the prefix's last unit.
    beams: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, -math.inf)}
    for step in log_probabilities:
        following: defaultdict[tuple[int, ...], list[float]] = defaultdict(lambda: [-math.inf, -math.inf])
        for prefix, (blank, other) in beams.items():
            for unit in np.flatnonzero(step > math.log(WORTH_A_LOOK)).tolist():
                _extend(following, prefix, unit, float(step[unit]), blank, other)
        ranked = sorted(following.items(), key=lambda item: -_add(*item[1]))
        beams = {prefix: (blank, other) for prefix, (blank, other) in ranked[:width]}
    return list(next(iter(beams)))


def _extend(
    following: defaultdict[tuple[int, ...], list[float]],
    prefix: tuple[int, ...],
    unit: int,
    log_probability: float,
    blank: float,
    other: float,
) -> None:
    """Add what becomes of a prefix's paths when a unit follows."""
    if unit == BLANK:
        same = following[prefix]
        same[0] = _add(same[0], _add(blank, other) + log_probability)
        return
    longer = following[(*prefix, unit)]
    if prefix and prefix[-1] == unit:  # a repeat without a blank between spells the prefix itself
        same = following[prefix]
        same[1] = _add(same[1], other + log_probability)
        longer[1] = _add(longer[1], blank + log_probability)
        return
    longer[1] = _add(longer[1], _add(blank, other) + log_probability)


def _add(one: float, other: float) -> float:
    """Return log(exp(one) + exp(other))."""
    return float(np.logaddexp(one, other))


def edits(found: Sequence[object], expected: Sequence[object]) -> int:
    """Return the fewest substitutions, insertions and deletions from one to the other (Levenshtein 1966)."""
    row = list(range(len(expected) + 1))
    for number, one in enumerate(found, 1):
        above, row[0] = row[0], number
        for place, other in enumerate(expected, 1):
            above, row[place] = row[place], min(above + (one != other), row[place] + 1, row[place - 1] + 1)
    return row[-1]
