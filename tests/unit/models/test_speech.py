"""The model of speech: padding changes nothing, its roles in muP, its coordinates at several widths."""

import pytest
import torch

from shoal.data.audio import BANDS, AudioFormat, outputs_of
from shoal.data.loader import Batch, ResidentShard
from shoal.data.sampler import Lanes
from shoal.data.units import UnitTokenizer
from shoal.distributed.process_group import SingleProcess
from shoal.errors import ModelError
from shoal.models.dropout import use_row_dropout
from shoal.models.mup import parametrize, roles
from shoal.models.row_draws import RowsOfBatch
from shoal.models.speech import Speech
from shoal.tasks.speech_recognition import SpeechRecognition
from shoal.training.assemble import assemble_loop
from shoal.training.loop import TrainConfig
from shoal.training.optimizer import OptimConfig
from shoal.tune.analysis.coordinate_check import coordinate_check, growth, verdict

UNITS = UnitTokenizer.fit("char", ["abcdefg "])
AUDIO = AudioFormat(rate=8000, units=UNITS.to_json())
FRAMES = 120


def speech(width=32, seed=0, **args):
    torch.manual_seed(seed)
    return Speech((FRAMES, BANDS), UNITS.vocabulary, width=width, **{"depth": 2, "heads": 2} | args)


def recordings(lengths, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(length, BANDS, generator=draw) for length in lengths]


def padded(rows, to, value=0.0):
    found = torch.full((len(rows), to, BANDS), value)
    for row, spectrogram in enumerate(rows):
        found[row, : len(spectrogram)] = spectrogram
    return found, torch.tensor([len(row) for row in rows])


def test_a_recording_alone_and_padded_in_a_batch_of_16_has_the_same_probabilities_and_text():
    model, task = speech().eval(), SpeechRecognition(AUDIO, seed=0)
    rows = recordings([1, 2, 3, 4, 5, 8, 16, 17, 33, 50, 64, 77, 90, 101, 119, 120])
    inputs, lengths = padded(rows, FRAMES, value=1e3)  # whatever is beyond the end is not heard
    targets = torch.full((len(rows), 1), 3)
    with torch.no_grad():
        together = model(inputs, lengths)
        batch = Batch({"spectrograms": inputs, "lengths": lengths}, targets, count=len(rows))
        texts = task.transcribe(together, batch)
        for row, spectrogram in enumerate(rows):
            one, length = padded([spectrogram], len(spectrogram))
            alone = model(one, length)
            assert alone.shape[1] == outputs_of(len(spectrogram))
            difference = alone.log_softmax(-1)[0] - together[row, : alone.shape[1]].log_softmax(-1)
            assert difference.abs().max() < 1e-5
            batch = Batch({"spectrograms": one, "lengths": length}, targets[:1], count=1)
            assert task.transcribe(alone, batch) == [texts[row]]
    assert len(set(texts)) > 4
    assert (together[0, 1:] == 0).all()


def test_its_roles_in_mup():
    with torch.device("meta"):
        other = speech(16)
    found = roles(speech(32), other)
    assert {name for name, role in found.items() if role == "output"} == {"output.weight"}
    expected = {
        "first.weight": "input",
        "second.weight": "hidden",
        "blocks.0.depthwise.weight": "input",  # its fan-in is the kernel alone
        "blocks.0.enter.weight": "hidden",
        "blocks.0.attention.query.weight": "hidden",
        "output.bias": "fixed",
    }
    assert {name: found.get(name) for name in expected} == expected


def loop_at(make):
    def loop(width, seed):
        model, task = make(width, seed), SpeechRecognition(AUDIO, seed=0)
        task.view = None  # the batch is as a model takes it
        shard = ResidentShard(Lanes(1, 1, seed=0), None, {})
        optim = OptimConfig(name="adam", lr=1e-3)
        return assemble_loop(model, task, shard, optim, TrainConfig(), SingleProcess(), torch.device("cpu"))

    return loop


def in_mup(width, seed):
    model = speech(width, seed)
    parametrize(model, speech(32, seed))
    return model


def test_its_activations_move_alike_at_every_width_under_mup_and_not_under_the_standard():
    inputs, lengths = padded(recordings([60, 50, 44, 60]), 60)
    draw = torch.Generator().manual_seed(1)
    targets = torch.randint(3, UNITS.vocabulary, (4, 5), generator=draw)
    batch = Batch({"spectrograms": inputs, "lengths": lengths}, targets, count=4)
    widths = [32, 64, 128, 256]
    found = growth(coordinate_check(loop_at(in_mup), [batch], widths, seeds=(0,)))
    assert verdict(found).passes, found
    standard = growth(coordinate_check(loop_at(speech), [batch], widths, seeds=(0,)))
    assert not verdict(standard).passes


def test_what_is_no_spectrogram_is_refused():
    with pytest.raises(ModelError, match=r"a sample of shape \(8,\) is no spectrogram"):
        Speech((8,), 4)


def test_the_draws_of_dropout_do_not_depend_on_the_padding_of_a_batch():
    """So a recording is dropped out alike by one worker with long ones and by another with short ones."""
    model = Speech((80, 40), 5, width=32, depth=2, dropout=0.5).train()
    use_row_dropout(model)
    recording, lengths = torch.randn(1, 80, 40), torch.tensor([48])
    found = []
    for frames in (48, 80):
        torch.manual_seed(0)
        with RowsOfBatch(0, step=3, first=2, distance=1, rows=1, device=torch.device("cpu")):
            found.append(model(recording[:, :frames], lengths)[:, :12])
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)
    model.eval()
    assert not torch.allclose(model(recording, lengths)[:, :12], found[0], atol=0.1), "something is dropped"
