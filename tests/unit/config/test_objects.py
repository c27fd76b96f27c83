"""Objects by value: names that are the same in every process, what is kept of them, what is refused."""

import functools
import subprocess
import sys
import textwrap
import threading
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from shoal.config import objects
from shoal.config.import_path import find, is_path
from shoal.config.object_digest import digest
from shoal.errors import UserError

SCRIPT = """
import functools, sys
import numpy as np, pandas as pd, polars_free, torch
from torch import nn
from shoal.config import objects

SCALE = 3


def helper(x):
    return x * SCALE if str(x) in {"a", "b", "c"} else other(x)


def other(x):
    return helper(x)


class Net(nn.Module):
    size: int = 3

    def __init__(self, inputs, outputs, width=8):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, outputs))

    def forward(self, x):
        return self.layers(x) + helper(1)


def make(k):
    weight = torch.arange(3.0)
    return lambda outputs, targets: (outputs - targets).abs().sum(1) * k + weight.sum()


class Rows(torch.utils.data.Dataset):
    def __init__(self):
        self.x, self.names, self.draw = torch.arange(10.0), {"a", "b"}, np.random.default_rng(0)

    def __len__(self):
        return 10

    def __getitem__(self, row):
        return self.x[row], 1


frame = pd.DataFrame({"a": np.arange(5.0), "b": list("abcde"), "c": pd.Categorical(list("xyxyx"))})
code = [Net, helper, make(2), functools.partial(other, 3), nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0]))]
print([objects.register(one, "key") for one in code])
print([objects.register(one, "key", is_data=True) for one in (Rows(), frame, {"train": frame}, (np.arange(3), [1, 2]))])
"""


def names_of(tmp_path, seed: str) -> str:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.replace(", polars_free", ""))
    run = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_a_script_names_the_same_objects_in_every_process(tmp_path):
    first = names_of(tmp_path, "1")
    assert first == names_of(tmp_path, "2")
    assert first.count("object:") == 9
    assert "object:Net-" in first


def made(k: int):
    return lambda x: x * k


def test_a_digest_is_of_the_content():
    frame = pd.DataFrame({"a": [1.0, 2.0], "b": ["x", None]})
    for one, same, another in (
        (made(1), made(1), made(2)),
        (frame, frame.copy(), frame.assign(a=[1.0, 3.0])),
        (frame, frame.copy(), frame.rename(columns={"a": "c"})),
        (np.arange(3), np.arange(3), np.arange(3.0)),
        (torch.ones(2), torch.ones(2), torch.zeros(2)),
        (torch.ones(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.bfloat16), torch.ones(2)),
        (functools.partial(made, 1), functools.partial(made, 1), functools.partial(made, 2)),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, {"a": 2, "b": 1}),
        (nn.Linear, nn.Linear, nn.Conv2d),
        (
            np.array(["a", None], dtype=object),
            np.array(["a", None], dtype=object),
            np.array(["a", 1], dtype=object),
        ),
    ):
        assert digest(one) == digest(same) != digest(another)


def test_an_object_inside_itself_has_a_digest():
    circle: list = [1]
    circle.append(circle)
    assert digest(circle) == digest(circle)


def test_what_can_be_imported_is_named_by_its_path():
    assert objects.register(nn.HuberLoss, "train.loss") == "torch.nn.modules.loss:HuberLoss"
    assert objects.register(nn.functional.mse_loss, "train.loss") == "torch.nn.functional:mse_loss"


def test_another_process_gets_the_object_by_its_pickle(monkeypatch):
    name = objects.register(made(5), "train.loss")
    assert is_path(name)
    assert objects.plain_name(name) == "lambda"
    assert list(objects.references({"train": {"loss": name, "metrics": [name, "f1"]}, "seed": 1})) == [
        name,
        name,
    ]
    pickles = objects.pickles([name])
    monkeypatch.setattr(objects, "_KEPT", {})
    with pytest.raises(UserError, match="passed from Python, and this process does not have it"):
        find(name, "train.loss")
    objects.receive(pickles)
    assert find(name, "train.loss")(2) == 10


def test_the_files_of_an_object_hold_it_and_its_source(tmp_path, monkeypatch):
    name = objects.register(made(7), "train.loss")
    files = objects.files_of([name])
    stem = name.removeprefix("object:")
    assert sorted(files) == [f"{stem}.pkl", f"{stem}.py"]
    assert "lambda x: x * k" in files[f"{stem}.py"].decode()
    for file, data in files.items():
        (tmp_path / file).write_bytes(data)
    monkeypatch.setattr(objects, "_KEPT", {})
    objects.receive_files(tmp_path)
    assert find(name, "train.loss")(2) == 14
    assert objects.files_of([name]) == files


def test_data_stay_in_their_process():
    name = objects.register(pd.DataFrame({"a": [1]}), "data.source", is_data=True)
    assert objects.is_kept(name)
    assert objects.pickles([name]) == {}
    assert objects.files_of([name]) == {}


def test_what_cannot_be_pickled_is_named():
    lock = threading.Lock()

    def loss(outputs, targets):
        with lock:
            return outputs - targets

    with pytest.raises(UserError, match=r"train\.loss is 'loss'.*it uses 'lock', a lock"):
        objects.register(loss, "train.loss")


def test_an_attribute_may_be_called_as_a_module_of_torch_is(monkeypatch):
    def count(thing):
        return torch.tensor(
            len(thing.classes)
        )  # cloudpickle keeps torch.classes for it, which is no plain module

    count.__module__ = "__main__"
    name = objects.register(count, "data.source")
    pickles = objects.pickles([name])
    monkeypatch.setattr(objects, "_KEPT", {})
    objects.receive(pickles)
    assert find(name, "data.source")(SimpleNamespace(classes="ab")) == 2


def test_a_damaged_pickle_is_a_users_error(monkeypatch):
    monkeypatch.setattr(objects, "_KEPT", {})
    objects.receive({"object:Net-00000000": b"no pickle"})
    with pytest.raises(UserError, match="object:Net-00000000' cannot be loaded here"):
        find("object:Net-00000000", "model.name")


def test_source_of_a_decorated_class_is_whole():
    from shoal.config.object_source import source_of

    @functools.total_ordering
    class Ranked:
        def __lt__(self, other):
            return True

    text = textwrap.dedent(source_of(Ranked) or "")
    assert text.startswith("@functools.total_ordering\nclass Ranked:")
    assert text.rstrip().endswith("return True")


def test_a_trusted_model_brings_its_own_objects(tmp_path, monkeypatch):
    from shoal.errors import ModelError
    from shoal.inference.artifact_code import code_of_artifact

    name = objects.register(made(3), "train.loss")
    folder = tmp_path / "code" / objects.FOLDER
    folder.mkdir(parents=True)
    for file, data in objects.files_of([name]).items():
        (folder / file).write_bytes(data)
    description = tmp_path / "data" / "weights" / "description.json"
    assert code_of_artifact(description, False, name, "train.loss")(2) == 6  # this process's own
    monkeypatch.setattr(objects, "_KEPT", {})
    with pytest.raises(ModelError, match="trust_code=true"):
        code_of_artifact(description, False, name, "train.loss")
    assert code_of_artifact(description, True, name, "train.loss")(2) == 6
