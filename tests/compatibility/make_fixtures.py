"""Makes all fixtures of the compatibility tests by running the jobs: the record, and the packed places.

It was run at commit 405cdcc, before the library was restructured, and is not run by the tests. `digits_two_workers` and
`ema` were made again at that commit without dropout, whose masks are others since:

    .venv/bin/python tests/compatibility/make_fixtures.py

Run at a later commit it records what that one does, so do this only to begin a new record.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from compatibility.fixtures import (
    HERE,
    RECORD,
    journals,
    last_checkpoint,
    machine,
    pack,
    points_of,
    predict,
    rows,
    run_folder,
    summary,
    write_corpus,
)

PLATFORM = str(HERE.parents[1] / "platform")
sys.path[:0] = [str(HERE.parent), PLATFORM]
os.environ["PYTHONPATH"] = (
    PLATFORM  # of the cluster's workers: an editable install may be of another checkout
)
from running import Place, end, ray_cluster  # noqa: E402  (of this checkout, as the shoal it imports)

ALONE = ("scale.num_workers=0", "experiment_name=compatibility", "checkpoint.keep=1")
TWO = ("scale.num_workers=2", "experiment_name=compatibility", "checkpoint.keep=1")

# A checkpoint at each step: it slows tiny steps enough for a run to be caught in the middle.
SLOWLY = "checkpoint.every_steps=1"

DIGITS = ("data.source=sklearn:digits", "data.global_batch_size=64", "model.width=16", "train.epochs=4")
GPT = (
    "task=causal_lm", "data.source=text:corpus", "data.context=16", "data.global_batch_size=16", "model.name=gpt",
    "model.width=16", "model.depth=2", "model.args={heads: 2}", "optim.name=adamw", "optim.weight_decay=0.1",
    "optim.lr=0.01", "optim.schedule=cosine", "optim.warmup_steps=5", "optim.clip_norm=1.0",
    "train.evaluate_every_steps=20",
)  # fmt: skip
SHORT = ("train.max_steps=30", "train.evaluate_every_steps=10", "checkpoint.every_steps=2")
RESNET = (
    "task=image_classification", "data.source=sklearn:digits", "data.shape=[1, 8, 8]", "data.pad=1",
    "data.global_batch_size=64", "model.name=resnet", "model.width=8", "model.depth=8", "optim.name=sgd",
    "optim.lr=0.05", "optim.schedule=linear", "train.max_steps=40", "train.evaluate_every_steps=20",
)  # fmt: skip

RUNS = {
    "digits": (*ALONE, *DIGITS, SLOWLY),
    "digits_two_workers": (*TWO, *DIGITS, "run_name=two", "model.args={dropout: 0.0}", "model.parametrization=mup",
                           "model.base_width=8"),
    "gpt": (*ALONE, *GPT, "run_name=gpt", "data.tokenizer=bpe:300", "train.max_steps=60"),
    "resnet": (*ALONE, *RESNET, "run_name=resnet"),
    "ema": (*ALONE, *DIGITS, "run_name=ema", "model.args={dropout: 0.0}", "train.ema=0.95", "optim.name=adamw",
            "optim.schedule=wsd", SLOWLY),
    "fsdp": (*TWO, *GPT, "run_name=fsdp", "scale.strategy=fsdp", *SHORT),
    "tp": (*TWO, *GPT, "run_name=tp", "scale.strategy=tp", *SHORT),
    "registered": (*ALONE, *DIGITS, "run_name=registered", "track.registered_model_name=digits"),
}  # fmt: skip
SWEEP = (
    "experiment_name=compatibility", "run_name=sweep", "data.source=sklearn:digits", "data.global_batch_size=64",
    "train.epochs=3", "train.evaluate_every_steps=8", "model.width=8,16", "optim.lr=loguniform(1e-4,1e-1)",
    "tune.scheduler=asha", "tune.num_samples=3", "tune.max_concurrent_trials=2", "checkpoint.keep=1", SLOWLY,
)  # fmt: skip

# How each half-finished run was stopped, and from which step on.
STOPPED = {"digits": (signal.SIGTERM, 30), "ema": (signal.SIGKILL, 40), "fsdp": (signal.SIGTERM, 8),
           "tp": (signal.SIGTERM, 8)}  # fmt: skip


def main() -> None:
    """Make everything; a few minutes."""
    record: dict[str, Any] = {"machine": machine(), "runs": {}, "half_finished": {}}
    with ray_cluster() as cluster, tempfile.TemporaryDirectory(prefix="shoal-fixtures-") as scratch:

        def make_place(name: str) -> Place:
            path = Path(scratch) / name
            path.mkdir()
            write_corpus(path / "corpus")
            return Place(path, {"RAY_ADDRESS": cluster["address"], "USER": "user", "LOGNAME": "user"})

        for name, arguments in RUNS.items():
            place = make_place(name)
            result = place.train(*arguments)
            record["runs"][name] = {
                "arguments": arguments,
                "summary": summary(result),
                "points": points_of(run_folder(place.path)),
            }
            print(name, result["steps"], "steps", flush=True)
            if name == "registered":
                pack(place.path, name)
                record["model"] = measure_registered(place)
        for name, (how, step) in STOPPED.items():
            place = make_place(f"half-{name}")
            record["half_finished"][name] = stop_in_the_middle(place, RUNS[name], how, step)
            pack(place.path, name)
            print(name, record["half_finished"][name], flush=True)
        record["sweep"] = sweep_twice(make_place)
        print("sweep", record["sweep"]["ended_before"], flush=True)
    RECORD.write_text(json.dumps(record, indent=1) + "\n")


def stop_in_the_middle(
    place: Place, arguments: tuple[str, ...], how: signal.Signals, step: int
) -> dict[str, Any]:
    """Stop a training after a step; return where it stands, once all its processes have ended."""
    process = place.start("train", *arguments)

    def has_come_far() -> bool:
        found = [run_folder(place.path)] if list(place.path.glob("runs/*/*/config.yaml")) else []
        return any(max(points_of(folder).get("train/loss", {0: 0})) >= step for folder in found)

    stop(process, how, has_come_far)
    folder = run_folder(place.path)
    steps = points_of(folder)["train/loss"]
    return {
        "run_name": folder.name,
        "checkpoint": last_checkpoint(folder),
        "steps": max(steps),
        "how": how.name,
    }


def sweep_twice(make_place: Callable[[str], Place]) -> dict[str, Any]:
    """Run a sweep to its end, and another one of the same until its driver is killed after two trials."""
    done = make_place("sweep").run("tune", *SWEEP)
    assert done.code == 0, done.out + done.err
    result = done.result
    place = make_place("half-sweep")
    process = place.start("tune", *SWEEP)

    def ended() -> list[str]:
        return sorted(path.parent.name for path in place.path.glob("runs/*/*/trials/*/result.json"))

    def trained() -> set[str]:
        return {path.parent.parent.name for path in journals(place.path) if "trials" in path.parts}

    stop(process, signal.SIGKILL, lambda: len(ended()) >= 2 and len(trained()) > len(ended()))
    assert len(ended()) < len(result["rows"])
    pack(place.path, "sweep")
    kept = ("trial", "params", "value", "metrics", "is_verified")
    return {
        "arguments": SWEEP,
        "rows": rows(result),
        "best": {key: result["best"][key] for key in kept},
        "trials": result["trials"],
        "ended_before": ended(),
    }


def stop(process: "subprocess.Popen[str]", how: signal.Signals, is_time: Callable[[], bool]) -> None:
    """Signal a job when it is time, and wait until the processes that it leaves behind have ended."""
    while not is_time():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    below = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(how)
    out, err = process.communicate()
    assert process.returncode == (130 if how == signal.SIGTERM else -how), out + err
    _, alive = psutil.wait_procs(below, timeout=60)
    for one in alive:
        end(one)


def measure_registered(place: Place) -> dict[str, Any]:
    """Return what the registered model predicts for some rows, and what an evaluation finds."""
    predicted = predict(place.path)
    done = place.run("evaluate", "models:/digits@champion")
    assert done.code == 0, done.out + done.err
    kept = ("data_source", "split", "rows", "metrics", "per_class")
    return {"predicted": predicted, "evaluation": {key: done.result[key] for key in kept}}


if __name__ == "__main__":
    main()
