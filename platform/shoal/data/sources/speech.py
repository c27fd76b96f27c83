"""Recordings become rows for speech recognition: waves at one rate, and their texts as units.

Every recording is decoded once before anything starts, so that those that cannot be used are known by name: they stop
the run, or with `data.on_bad=skip` they are left out and counted. It knows recordings and splits; independent of how
they are listed and of models.
"""

import hashlib
import logging
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from shoal.data.array_stats import longest_kept
from shoal.data.audio import MAX_RATE, AudioFormat, outputs_of
from shoal.data.how_far import HowFar
from shoal.data.packing import as_ragged
from shoal.data.sampler import SPLITS, TRAIN, VALIDATION, SplitRule
from shoal.data.sources.base import IN_DRIVER_BYTES, Block, Part, Source
from shoal.data.sources.recordings import Recording
from shoal.data.sources.strings import Compose, Held, composed
from shoal.data.tokenizer import Ids, Tokenizer
from shoal.data.units import make_units
from shoal.errors import DataError
from shoal.processes import no_garbage_search

logger = logging.getLogger(__name__)

AUDIO = "audio"  # the column of waves
BLOCK_BYTES = 32 << 20  # of waves
NO_SAMPLES, NO_TEXT = "it holds no samples", "it has no text"
NAMED = 10  # recordings that a message names

# Names of recordings that cannot be used, with the reason.
Bad = list[tuple[str, str]]


@dataclass(frozen=True)
class SpeechOptions:
    """How recordings become rows, besides the recordings.

    Attributes:
        label: the column of the texts in the rows.
        rule: how rows are split.
        units: `data.tokenizer`.
        rate: `data.sample_rate`; None: the lowest of the recordings, at most `MAX_RATE`.
        skips: leave out what cannot be used.
        compose: how recordings are strung together; None: each is a row.
        trained: a trained model's format; then none is chosen.
    """

    label: str
    rule: SplitRule
    units: str
    rate: int | None = None
    skips: bool = False
    compose: Compose | None = None
    trained: AudioFormat | None = None


@dataclass(frozen=True)
class Usable:
    """A recording that can be decoded.

    Attributes:
        samples: their number, at the rate of all.
        checksum: of the samples.
    """

    recording: Recording
    split: str
    samples: int
    checksum: int

    @classmethod
    def of(cls, recording: Recording, split: str, wave: np.ndarray) -> "Usable":
        return cls(recording, split, len(wave), _checksum(wave))


@dataclass
class _Heard:
    """A recording as it was decoded at its own rate, or why it was not."""

    recording: Recording
    rate: int = 0
    samples: int = 0
    checksum: int = 0
    problem: str = ""


@dataclass(frozen=True)
class Row:
    """A recording with its units."""

    recording: Recording
    ids: Ids
    samples: int
    checksum: int


def speech_source(uri: str, scheme: str, recordings: Sequence[Recording], options: SpeechOptions) -> Source:
    """Return rows {"audio": [samples] int16, label: [units] int32}, both ragged, by split.

    Raises:
        DataError: recordings cannot be used, or none is left.
    """
    bad: Bad = []
    with no_garbage_search():
        heard = _heard(uri, recordings)
        rates = Counter(one.rate for one in heard if one.rate)
        rate = options.trained.rate if options.trained else options.rate or min((MAX_RATE, *rates))
        usable = _usable(heard, rate, options.rule, bad)
    if options.compose:
        usable = _strung(usable, rate, options.compose)
    if not options.trained:  # what is trained on is kept padded
        usable = _of_like_length(usable, rate, bad)
    form = options.trained or AudioFormat(rate=rate, units=_units(usable, options.units))
    by_split = _rows(usable, form, bad)
    if bad and not options.skips:
        raise DataError(
            f"data.source='{uri}': {_described(bad)}: fix or remove them, or set data.on_bad=skip"
        )
    if not by_split:
        raise DataError(f"data.source='{uri}' has no recording that can be used: {_described(bad)}: fix them")
    return Source(
        uri,
        scheme,
        tuple(Part(partial(_blocks, rows, form, options.label), split) for split, rows in by_split.items()),
        nbytes=sum(row.samples for rows in by_split.values() for row in rows) * 2,
        is_ready=True,
        digest=_digest(by_split, form),
        notes=(*_rate_notes(rates, rate), *((f"{_described(bad)}: left out",) if bad else ())),
        parts_of_items={AUDIO: AUDIO, options.label: options.label},
        audio=form,
    )


def _heard(uri: str, recordings: Sequence[Recording]) -> list[_Heard]:
    """Decode each recording once, and hold those for which there is room, since each is heard several times."""
    found: list[_Heard] = []
    room, how_far = IN_DRIVER_BYTES, HowFar(logger)
    for one in recordings:
        how_far("data.source='%s': %d of %d recordings are decoded", uri, len(found), len(recordings))
        try:
            wave, rate = one.sound.decoded()
        except ValueError as error:
            found.append(_Heard(one, problem=str(error)))
            continue
        found.append(_Heard(one, rate, len(wave), _checksum(wave)))
        room -= wave.nbytes
        if room >= 0:
            found[-1].recording = replace(one, sound=Held(one.sound.name, rate, wave))
    return found


def _checksum(wave: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(wave).data)


def _rate_notes(rates: Counter[int], rate: int) -> tuple[str, ...]:
    """Return a line on recordings of several rates."""
    if len(rates) < 2:
        return ()
    counted = ", ".join(f"{number} at {own} Hz" for own, number in sorted(rates.items()))
    return (f"recordings of several rates ({counted}) are brought to {rate} Hz",)


def _usable(heard: Sequence[_Heard], rate: int, rule: SplitRule, bad: Bad) -> list[Usable]:
    """Return recordings at a rate; those that cannot be decoded, or have no text, are added to `bad`."""
    found = []
    for one, split in zip(heard, _splits([one.recording for one in heard], rule), strict=True):
        recording = one.recording
        problem = one.problem or ("" if one.samples else NO_SAMPLES) or ("" if recording.text else NO_TEXT)
        if problem:
            bad.append((recording.sound.name, problem))
        elif one.rate == rate:
            found.append(Usable(recording, split, one.samples, one.checksum))
        else:
            wave = recording.sound.wave(rate)
            if isinstance(recording.sound, Held):
                recording = replace(recording, sound=Held(recording.sound.name, rate, wave))
            found.append(Usable.of(recording, split, wave))
    return found


def _splits(recordings: Sequence[Recording], rule: SplitRule) -> list[str]:
    """Return each recording's split, a function of its number in the list where none is stated."""
    has_validation = any(one.split == VALIDATION for one in recordings)
    numbers = np.arange(len(recordings))
    by_stated = {
        stated: rule.assign(numbers, stated, has_validation) for stated in {one.split for one in recordings}
    }
    return [SPLITS[by_stated[one.split][number]] for number, one in enumerate(recordings)]


def _strung(usable: Sequence[Usable], rate: int, how: Compose) -> list[Usable]:
    """Return strings of the recordings of each split."""
    found = []
    for split in SPLITS:
        own = [one.recording for one in usable if one.split == split]
        sounds = [Held(one.sound.name, rate, one.sound.wave(rate)) for one in own]
        strings = composed(own, sounds, split, how) if own else []
        found += [Usable.of(string, split, string.sound.wave(rate)) for string in strings]
    return found


def _of_like_length(usable: Sequence[Usable], rate: int, bad: Bad) -> list[Usable]:
    """Return recordings that can be padded to the longest of them; those that are too long are added to `bad`."""
    if not usable:
        return []
    lengths = np.array([one.samples for one in usable], dtype=np.int64)
    longest = longest_kept(lengths, np.dtype(np.int16).itemsize)
    mean_s = lengths[lengths <= longest].mean() / rate
    for one in usable:
        if one.samples > longest:
            reason = (
                f"{one.samples / rate:.0f} s long, and those that are kept have {mean_s:.1f} s on average"
            )
            bad.append((one.recording.sound.name, f"{reason}: all are padded to the longest"))
    return [one for one in usable if one.samples <= longest]


def _units(usable: Sequence[Usable], name: str) -> str:
    """Return the units of the training texts, as JSON."""
    return make_units(name, (one.recording.text for one in usable if one.split == TRAIN)).to_json()


def _rows(usable: Sequence[Usable], form: AudioFormat, bad: Bad) -> dict[str, list[Row]]:
    """Return the rows of each split that has any; recordings whose texts do not fit are added to `bad`."""
    rows: dict[str, list[Row]] = {}
    tokenizer = form.tokenizer
    for split in SPLITS:
        for one in usable:
            if one.split != split:
                continue
            try:
                ids = fitting_units(tokenizer, one.recording.text, form.frames(one.samples))
            except DataError as error:
                bad.append((one.recording.sound.name, str(error)))
                continue
            rows.setdefault(split, []).append(Row(one.recording, ids, one.samples, one.checksum))
    return rows


def fitting_units(tokenizer: Tokenizer, text: str, frames: int) -> Ids:
    """Return the units of a text, for which a recording must be long enough.

    The CTC loss needs an output for each unit, and a blank between two that are alike (Graves et al. 2006,
    "Connectionist temporal classification", section 3.1): with fewer outputs it is infinite.

    Raises:
        DataError: it is too short, or the text has other units than the training texts.
    """
    ids = tokenizer.encode(text)
    needed, found = len(ids) + int((ids[1:] == ids[:-1]).sum()), outputs_of(frames)
    if needed > found:
        raise DataError(
            f"too short for its text of {len(ids)} units: it has {found} outputs, and {needed} are needed"
        )
    return ids


def _described(bad: Bad) -> str:
    """Count recordings that cannot be used, and name the first ones with the reason."""
    some = ", ".join(f"'{name}' ({reason})" for name, reason in bad[:NAMED])
    more = f", and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
    return (
        f"{len(bad)} recordings cannot be used: {some}{more}"
        if len(bad) > 1
        else f"1 recording cannot be used: {some}"
    )


def _blocks(rows: Sequence[Row], form: AudioFormat, label: str) -> Iterator[Block]:
    """Yield the rows of a split, some 32 MiB at a time."""
    some: list[Row] = []
    size = 0
    for row in rows:
        some.append(row)
        size += row.samples * 2
        if size >= BLOCK_BYTES:
            yield _block(some, form, label)
            some, size = [], 0
    if some:
        yield _block(some, form, label)


def _block(rows: Sequence[Row], form: AudioFormat, label: str) -> Block:
    return {
        AUDIO: as_ragged([row.recording.sound.wave(form.rate) for row in rows]),
        label: as_ragged([row.ids for row in rows]),
    }


def _digest(by_split: dict[str, list[Row]], form: AudioFormat) -> str:
    """Return a short hash of samples, texts and splits, and of the format; the list's own form is not in it."""
    hasher = hashlib.sha256(form.model_dump_json().encode())
    for split, rows in by_split.items():
        for row in rows:
            hasher.update(f"{split} {row.samples} {row.checksum} {row.recording.text}\n".encode())
    return hasher.hexdigest()[:16]
