"""Speech recognition: errors as jiwer counts them, beams as brute force finds them, sums over any division of rows."""

import itertools
import math
from dataclasses import replace

import jiwer
import numpy as np
import pytest
import torch

from shoal.data.audio import BANDS, AudioFormat
from shoal.data.loader import Batch
from shoal.data.units import UnitTokenizer
from shoal.errors import ModelError
from shoal.tasks.speech_recognition import FRAMES_STEP, SpeechRecognition
from shoal.tasks.transcripts import BLANK, beam_search, edits, greedy
from shoal.training.accumulation import split_batch

UNITS = UnitTokenizer.fit("char", ["abc "])
AUDIO = AudioFormat(rate=8000, units=UNITS.to_json())
WORDS = ["one", "two", "three", "four", "five"]


def texts(count, seed):
    draw = np.random.default_rng(seed)
    return [" ".join(draw.choice(WORDS, draw.integers(1, 8))) for _ in range(count)]


def test_edits_are_those_of_jiwer():
    for found, said in zip(texts(100, 0), texts(100, 1), strict=True):
        of_words = jiwer.process_words(said, found)
        assert edits(found.split(), said.split()) == (
            of_words.substitutions + of_words.insertions + of_words.deletions
        )
        assert edits(found, said) / len(said) == pytest.approx(jiwer.cer(said, found))
    assert edits("", "abc") == edits("abc", "") == 3


def spelled(path):
    return tuple(unit for unit, _ in itertools.groupby(path) if unit != BLANK)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("steps", [1, 3, 5])
def test_a_beam_finds_what_brute_force_over_all_paths_finds(steps, seed):
    likely = np.random.default_rng(seed).dirichlet(np.full(3, 0.5), steps).clip(1e-3)
    likely = np.log(likely / likely.sum(1, keepdims=True))
    sums = {}
    for path in itertools.product(range(3), repeat=steps):
        total = sum(likely[step, unit] for step, unit in enumerate(path))
        sums[spelled(path)] = np.logaddexp(sums.get(spelled(path), -math.inf), total)
    assert tuple(beam_search(likely, width=1000)) == max(sums, key=sums.get)


def test_greedy_joins_repeats_and_leaves_out_blanks():
    assert greedy(np.array([0, 3, 3, 0, 3, 4, 4, 0, 0])) == [3, 3, 4]
    assert greedy(np.array([0, 0])) == []


def batch_of(count=6, frames=40, seed=0):
    draw = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([40, 33, 28, 21, 40, 36][:count])
    targets = torch.full((count, 5), -100)
    for row in range(count):
        units = 1 + row % 5
        targets[row, :units] = torch.randint(3, 6, (units,), generator=draw)
    spectrograms = torch.randn(count, frames, BANDS, generator=draw)
    outputs = 3 * torch.randn(count, 10, UNITS.vocabulary, generator=draw)
    return Batch({"x": spectrograms, "lengths": lengths}, targets, count), outputs


def test_the_loss_is_torchs_per_unit_and_what_is_padded_does_not_matter():
    task, (batch, outputs) = SpeechRecognition(AUDIO, seed=0), batch_of()
    found = task.own_losses(outputs, batch)
    for row, length in enumerate([10, 9, 7, 6, 10, 9]):
        units = batch.targets[row][batch.targets[row] >= 0]
        alone = torch.nn.functional.ctc_loss(
            outputs[row, :length].log_softmax(-1)[:, None],
            units[None],
            [length],
            [len(units)],
            reduction="sum",
        )
        assert found[row] == pytest.approx(alone.item() / len(units), rel=1e-5)


def test_metrics_are_equal_however_rows_are_divided():
    task, (batch, outputs) = SpeechRecognition(AUDIO, seed=0), batch_of()
    whole = task.metrics(task.sums(outputs, batch))
    for size in (1, 4):
        parts = split_batch(batch, size, count=1)
        sums = sum(task.sums(outputs[part.first : part.first + len(part.targets)], part) for part in parts)
        assert task.metrics(sums) == pytest.approx(whole, rel=1e-12)
    found, said = task.transcribe(outputs, batch), task.references(batch)
    assert whole["cer"] == pytest.approx(jiwer.cer(said, found))
    assert 0 < whole["blank_share"] < 1


def test_blanks_of_training_depend_on_what_is_heard_alone():
    task = SpeechRecognition(AUDIO, seed=0, mask_bands=8, mask_frames=10)
    batch, _ = batch_of()
    lengths = batch.inputs["lengths"]
    heard = torch.arange(40) < lengths[:, None]
    batch = replace(batch, inputs=batch.inputs | {"x": batch.inputs["x"] * heard[..., None]})
    first = task.view(batch, 0).inputs["x"]
    assert (first == 0).sum() > (batch.inputs["x"] == 0).sum()
    assert not torch.equal(task.view(batch, 1).inputs["x"], first)
    assert torch.equal(task.view(batch, None).inputs["x"], batch.inputs["x"])
    for part in split_batch(batch, 2, count=1):
        found = task.view(part, 0).inputs["x"]
        assert 0 <= found.shape[1] - int(part.inputs["lengths"].max()) < FRAMES_STEP
        assert torch.equal(found, first[part.first : part.first + 2, : found.shape[1]])


def test_a_model_that_does_not_take_lengths_or_returns_another_number_is_refused():
    task, (batch, outputs) = SpeechRecognition(AUDIO, seed=0), batch_of()
    with pytest.raises(ModelError, match=r"it must return \(6, 10, 7\), an output for each 4 frames"):
        task.own_losses(outputs[:, :9], batch)
    with pytest.raises(ModelError, match="does not take `lengths`"):
        task.view(replace(batch, inputs=batch.inputs["x"]), None)
