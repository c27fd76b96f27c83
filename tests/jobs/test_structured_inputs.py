"""Models of several inputs and of sequences of several lengths: trained, killed, resumed, evaluated and reloaded."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from running import Place, Trace, assert_close, assert_equal

pytestmark = pytest.mark.long

PARTS = '''
import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset


class Ratings(Dataset):
    def __init__(self, rows=160):
        draw = np.random.default_rng(0)
        self.user = draw.normal(size=(rows, 4)).astype(np.float32)
        self.item = draw.integers(0, 6, rows)
        self.liked = (self.user[:, 0] + 0.5 * (self.item - 2.5) > 0).astype(np.int64)

    def __len__(self):
        return len(self.item)

    def __getitem__(self, row):
        return {"user": self.user[row], "item": int(self.item[row])}, self.liked[row]


class TwoTower(nn.Module):
    def __init__(self, outputs, width=16):
        super().__init__()
        self.of_user, self.of_item = nn.Linear(4, width), nn.Embedding(6, width)
        self.head = nn.Linear(width, outputs)

    def forward(self, user, item):
        return self.head(torch.relu(self.of_user(user) + self.of_item(item)))


class Sequences(Dataset):
    def __init__(self, rows=160):
        draw = np.random.default_rng(1)
        self.rows = [draw.normal(size=(int(n), 3)).astype(np.float32) for n in draw.integers(1, 9, rows)]

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, row):
        return self.rows[row], int(self.rows[row][:, 0].sum() > 0)


class Recurrent(nn.Module):
    def __init__(self, inputs, outputs, width=16):
        super().__init__()
        self.lstm, self.head = nn.LSTM(inputs[-1], width, batch_first=True), nn.Linear(width, outputs)

    def forward(self, x, lengths):
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        _, (last, _) = self.lstm(packed)
        return self.head(last[-1])


def padded(samples):
    """A collate function: pads to the longest of the batch, and says how long each is."""
    lengths = torch.tensor([len(x) for x, _ in samples])
    inputs = nn.utils.rnn.pad_sequence([x for x, _ in samples], batch_first=True)
    return (inputs, lengths), torch.stack([target for _, target in samples])


def ratings():
    return Ratings()


def sequences():
    return Sequences()


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return iter([Sequences()[row] for row in range(160)])


def stream():
    return Stream()


def others():
    return Ratings(rows=40)
'''

TWO_TOWER = ("data.source=parts:ratings", "model.name=parts:TwoTower")
LSTM = ("data.source=parts:sequences", "model.name=parts:Recurrent")
GROUPED = (*LSTM, "data.group_by_length=true")
SHORT = ("train.epochs=2", "data.global_batch_size=16", "model.width=16")

# A consumer of the model, who has neither Shoal nor the user's code on the path: it is in the model.
CONSUMER = """
import json, sys
from mlflow import pyfunc
model = pyfunc.load_model(sys.argv[1])
print(json.dumps(model.predict(model.input_example)["prediction"].tolist()))
"""


def predicted(model: Path, elsewhere: Path) -> list[int]:
    done = subprocess.run(
        [sys.executable, "-c", CONSUMER, str(model)],
        cwd=elsewhere,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        | {"SHOAL_TRUST_CODE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found: list[int] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


@pytest.mark.parametrize("parts", [TWO_TOWER, LSTM, GROUPED], ids=["two-tower", "lstm", "lstm-grouped"])
def test_workers_and_ways_of_reading_make_no_difference(
    shared: Place, parts: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> None:
    (shared.path / "parts.py").write_text(PARTS)
    for name, options in {
        "alone": ("scale.num_workers=0",),
        "two": ("scale.num_workers=2",),
        "streamed": ("scale.num_workers=2", "data.resident=false"),
    }.items():
        result = shared.train(*parts, *SHORT, *options, f"run_name={name}")
        assert result["is_verified"]
    alone, two, streamed = (Trace.of(shared.folder(name)) for name in ("alone", "two", "streamed"))
    assert_close(alone, two)
    assert_equal(two, streamed)
    done = shared.run("evaluate", str(shared.path / "runs/shoal/two"), "trust_code=true")
    assert done.code == 0, done.out + done.err
    if parts is TWO_TOWER:
        options_ = ("trust_code=true", "data.source=parts:others")
        done = shared.run("evaluate", str(shared.path / "runs/shoal/two"), *options_)
        assert done.code == 0, done.out + done.err
        assert done.result["rows"] == 40
    model = shared.path / "runs/shoal/two/model"
    assert set(predicted(model, tmp_path_factory.mktemp("elsewhere"))) <= {0, 1}


@pytest.mark.parametrize(
    "options", [(), ("data.collate=parts:padded",), GROUPED[-1:]], ids=["standard", "collate", "grouped"]
)
def test_a_killed_run_on_sequences_ends_up_like_its_twin(place: Place, options: tuple[str, ...]) -> None:
    (place.path / "parts.py").write_text(PARTS)
    arguments = (
        *LSTM,
        *SHORT,
        *options,
        "scale.num_workers=0",
        "train.epochs=20",
        "checkpoint.every_steps=20",
    )
    place.train(*arguments, "run_name=twin")
    process = place.start("train", *arguments, "run_name=killed")
    place.wait_for_step(process, "killed", 60)
    process.kill()
    process.communicate()
    place.train(*arguments, "run_name=killed")
    assert_equal(Trace.of(place.folder("killed")), Trace.of(place.folder("twin")))


def test_a_stream_and_a_collate_function_train_as_padded_sequences_do(place: Place) -> None:
    (place.path / "parts.py").write_text(PARTS)
    alone = (*LSTM, *SHORT, "scale.num_workers=0")
    place.train(*alone, "run_name=padded")
    place.train(*alone, "data.source=parts:stream", "run_name=stream")
    place.train(*alone, "data.collate=parts:padded", "run_name=collated")
    padded, stream, collated = (Trace.of(place.folder(name)) for name in ("padded", "stream", "collated"))
    assert_equal(padded, stream)
    assert_close(padded, collated)
