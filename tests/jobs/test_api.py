"""`import shoal` as its users call it: from a script, a notebook's `__main__`, a thread; with their own objects."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from running import JOB_TIMEOUT_S, ROOT, Place

# What a script and a notebook's cell share: a frame, an own model.
OWN = """
import numpy as np
import pandas as pd
import shoal
from torch import nn

draw = np.random.default_rng(0)
frame = pd.DataFrame({"a": draw.normal(size=600), "b": draw.normal(size=600)})
frame["town"] = draw.choice(["Oslo", "Rome"], 600)
frame["y"] = np.where(frame.a > frame.b, "up", "down")


class Net(nn.Module):
    def __init__(self, inputs, outputs, width=8):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, outputs))

    def forward(self, x):
        return self.layers(x)


config = {"data": {"source": frame, "label": "y"}, "model.name": Net, "model.width": 8, "optim.lr": 0.01}
"""


def python(
    place: Place, code: str, *arguments: str, script: str | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run a script, or code as `__main__` without a file, as a notebook has it."""
    text = textwrap.dedent(code)
    if script:
        (place.path / script).write_text(text)
    command = [script] if script else ["-c", text]
    return subprocess.run(
        [sys.executable, *command, *arguments],
        cwd=place.path,
        env={**place.env, "PYTHONPATH": str(ROOT / "platform")},
        capture_output=True,
        text=True,
        timeout=JOB_TIMEOUT_S,
    )


def test_a_frame_and_a_class_of_main_train_and_the_model_is_at_hand(place: Place):
    done = python(
        place,
        OWN
        + """
result = shoal.train(config, train={"epochs": 6}, scale={"num_workers": 0}, **{"track.registered_model_name": "towns"})
assert result.status == "FINISHED" and result.record.is_verified
assert result.metrics["test/accuracy"] > 0.9, result.metrics
assert {"val/loss", "test/loss"} <= set(result.metrics) and "best/step" in result.best
assert result.curves["train/loss"].dropna().index[-1] == result.record.steps
assert result.curves.loc[result.record.steps, "test/accuracy"] == result.metrics["test/accuracy"]
assert result.registered == ("towns", 1) and result.registered.uri == "models:/towns/1"
assert (result.model.predict(frame)["prediction"] == frame.y).mean() > 0.9
assert result.model.classes == ("down", "up") and result.model.columns == ("a", "b", "town")
assert "data:image/png" in result._repr_html_() and "test/accuracy" in repr(result)

again = shoal.evaluate(result)
assert again.metrics["test/accuracy"] == result.metrics["test/accuracy"]
some = shoal.evaluate(shoal.load_model(result.registered.uri), frame.head(50))
assert some.rows == 50 and list(some.per_class.columns) == ["precision", "recall", "support"]
print(result.folder)
""",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "data    object:DataFrame-" in done.stdout
    folder = Path(done.stdout.strip().splitlines()[-1])
    assert folder.name.startswith("Net-DataFrame-")

    # Another process has neither the class nor the frame.
    later = python(
        place,
        f"""
        import pandas as pd
        import shoal

        folder = {str(folder)!r}
        rows = pd.DataFrame({{"a": [1.0, -1.0], "b": [-1.0, 1.0], "town": ["Oslo", "Rome"], "y": ["up", "down"]}})
        try:
            shoal.load_model(folder)
        except shoal.UserError as error:
            assert "trust_code=true" in str(error), error
        model = shoal.load_model(folder, trust_code=True)
        assert list(model.predict(rows)["prediction"]) == ["up", "down"]
        try:
            shoal.evaluate(model)
        except shoal.UserError as error:
            assert "shoal.evaluate(model, source=rows)" in str(error), error
        assert shoal.evaluate(model, rows).metrics["test/accuracy"] == 1.0

        import mlflow, os
        os.environ["SHOAL_TRUST_CODE"] = "1"
        assert list(mlflow.pyfunc.load_model(folder + "/model").predict(rows)["prediction"]) == ["up", "down"]
        """,
    )
    assert later.returncode == 0, later.stdout + later.stderr
    assert len(list((folder / "objects").glob("Net-*.pkl"))) == 1


@pytest.mark.long
def test_the_same_script_resumes_after_ctrl_c(place: Place):
    """The handler of the caller is back afterwards; the checkpoint is used by the same script."""
    code = (
        OWN
        + """
import os, signal, sys, threading, time, glob

if __name__ == "__main__":
    before = signal.getsignal(signal.SIGINT)
    if sys.argv[1] == "stop":
        def stop():
            while not glob.glob("runs/shoal/*/checkpoints/step-*"):
                time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGINT)
        threading.Thread(target=stop, daemon=True).start()
    try:
        result = shoal.train(
            config, train={"epochs": 100}, scale={"num_workers": 0}, **{"checkpoint.every_steps": 50}
        )
        print("attempt", result.record.attempt, result.record.steps)
    except KeyboardInterrupt as error:
        assert isinstance(error, shoal.Interrupted), error
        print("stopped:", error)
    assert signal.getsignal(signal.SIGINT) is before
"""
    )
    first = python(place, code, "stop", script="script.py")
    assert first.returncode == 0, first.stdout + first.stderr
    assert "the same command resumes there" in first.stdout
    second = python(place, code, "go", script="script.py")
    assert second.returncode == 0, second.stdout + second.stderr
    assert "resuming at step" in second.stdout
    assert "attempt 2 800" in second.stdout
    assert len(list((place.path / "runs/shoal").iterdir())) == 1
    (source,) = (place.path / "runs/shoal").glob("*/objects/Net-*.py")
    assert source.read_text().startswith("class Net(nn.Module):")


@pytest.mark.long
def test_a_training_in_a_thread_and_bad_input_end_no_process(place: Place):
    done = python(
        place,
        OWN
        + """
import threading

found = []
thread = threading.Thread(
    target=lambda: found.append(shoal.train(config, train={"epochs": 1}, scale={"num_workers": 0}, run_name="one"))
)
thread.start()
thread.join()
assert found[0].status == "FINISHED"
assert shoal.train(config, train={"epochs": 1}, scale={"num_workers": 0}, run_name="one").folder == found[0].folder
for wrong in ({"lr": 1}, {"data.label": "z"}, {"run_name": "one", "seed": 5}, {"model.args": {"depth": 2}}):
    try:
        shoal.train(config, **({"scale": {"num_workers": 0}} | wrong))
    except shoal.UserError as error:
        print("refused:", error)
""",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("refused:") == 4, done.stdout
    assert "run one is finished; set if_exists=new to train it again" in done.stdout


@pytest.mark.long
def test_two_workers_and_a_sweep_have_the_objects_of_a_notebook(place: Place):
    done = python(
        place,
        OWN
        + """
class Wide(Net):
    pass


result = shoal.train(config, train={"epochs": 4}, scale={"num_workers": 2})
alone = shoal.train(config, train={"epochs": 4}, scale={"num_workers": 0})
assert abs(result.metrics["test/loss"] - alone.metrics["test/loss"]) < 1e-5

space = {"optim.lr": shoal.loguniform(1e-3, 1e-1), "model.name": [Net, Wide]}
sweep = shoal.tune(config, space, train={"epochs": 3}, **{"tune.num_samples": 2})
assert len(sweep.trials) == 4 and set(space) <= set(sweep.trials.columns)
assert set(sweep.best.params) == set(space)
assert sweep.trials["val/loss"].iloc[0] == sweep.best.value
assert (sweep.best.model.predict(frame)["prediction"] == frame.y).mean() > 0.8
assert "<html" in open(sweep.report).read()
assert sweep._repr_html_()
""",
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.long
@pytest.mark.parametrize("kind", ["dataset", "polars", "function", "splits", "arrow"])
def test_every_form_of_data_trains(place: Place, kind: str):
    if kind == "polars":
        pytest.importorskip("polars")
    done = python(
        place,
        OWN
        + f"""
import sys
import torch

class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return len(frame)

    def __getitem__(self, row):
        return torch.tensor([frame.a[row], frame.b[row]], dtype=torch.float32), int(frame.y[row] == "up")

kind = {kind!r}
rows = frame.drop(columns="town")
if kind == "polars":
    import polars
    source = polars.from_pandas(frame).lazy()
elif kind == "arrow":
    import pyarrow
    source = pyarrow.Table.from_pandas(rows)
else:
    source = {{
        "dataset": Rows(), "function": lambda: rows, "splits": {{"train": rows[:500], "test": rows[500:]}}
    }}[kind]
label = {{"data.label": "target"}} if kind == "dataset" else {{"data.label": "y"}}
result = shoal.train(
    {{"data.source": source, "model.name": Net, **label}}, train={{"epochs": 5}}, optim={{"lr": 0.01}},
    scale={{"num_workers": 0}},
)
assert result.metrics["test/accuracy"] > 0.85, result.metrics
assert result.record.is_verified
""",
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.long
def test_a_session_of_ray_that_the_caller_opened_is_used_and_stays(place: Place):
    """With what the caller keeps in it: a Ray Dataset that is trained on, an object, an actor."""
    done = python(
        place,
        OWN
        + """
import ray

ray.init(num_cpus=4, include_dashboard=False)
node, kept = ray.get_runtime_context().get_node_id(), ray.put("mine")

@ray.remote(num_cpus=0)
class Counter:
    calls = 0

    def call(self):
        self.calls += 1
        return self.calls

def is_as_before():
    same = ray.is_initialized() and ray.get_runtime_context().get_node_id() == node
    return same and ray.get(kept) == "mine" and ray.get(counter.call.remote())

counter = Counter.remote()
assert is_as_before() == 1
rows = ray.data.from_pandas(frame)
for call, workers in ((2, 2), (3, 0)):
    ours = config | {"data": {"source": rows, "label": "y"}}
    result = shoal.train(ours, train={"epochs": 5}, scale={"num_workers": workers})
    assert result.metrics["test/accuracy"] > 0.85, result.metrics
    assert is_as_before() == call
shoal.tune(config, {"optim.lr": [0.01, 0.1]}, train={"epochs": 1})
assert is_as_before() == 4
assert rows.count() == len(frame)
""",
        script="script.py",
    )
    assert done.returncode == 0, done.stdout + done.stderr
