import errno
import hashlib
import io
import json
import random
import time

import numpy as np
import pytest
import torch
from torch import nn

from shoal.distributed.process_group import SingleProcess
from shoal.errors import CheckpointError, StorageError
from shoal.storage.records import CheckpointState, Manifest
from shoal.storage.run_folder import CHECKPOINTS, RunFolder
from shoal.training.checkpoint.background import BackgroundSaver
from shoal.training.checkpoint.contents import (
    DATASET_INFO,
    OPTIMIZER,
    RANDOM,
    WEIGHTS,
    TrainingProgress,
    random_state,
    set_random_state,
    snapshot,
)
from shoal.training.checkpoint.restore import restore
from shoal.training.checkpoint.store import CheckpointStore
from shoal.training.optimizer import OptimConfig, build_optimizer

FILES = [WEIGHTS, OPTIMIZER, RANDOM, CheckpointState.file, DATASET_INFO]


def trained(steps=3, seed=0):
    """A model with buffers and an optimizer with state."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(torch.randn(5, 3)) ** 2).sum().backward()
        optimizer.step()
    return model, optimizer


def equal(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other) and one.dtype == other.dtype
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def taken(step, best_step=None):
    model, optimizer = trained()
    best = {} if best_step is None else {"best/step": float(best_step), "best/val_loss": 0.1}
    return snapshot(
        model, optimizer, TrainingProgress(step=step, samples=step * 8, best=best), [random_state()]
    )


@pytest.fixture
def folder(tmp_path):
    return RunFolder(str(tmp_path / "run"))


@pytest.fixture
def store(folder):
    return CheckpointStore(folder, keep=10)


def save(store, *steps, best_step=None):
    return [store.save(taken(step, best_step), {"attempt": 1}, b"{}") for step in steps]


def corrupt(folder, name, file):
    path = f"{CHECKPOINTS}/{name}/{file}"
    data = bytearray(folder.read(path))
    data[len(data) // 2] ^= 1
    folder.write(path, bytes(data))


# What is kept.


def test_everything_comes_back_as_it_was(place):
    store = CheckpointStore(RunFolder(place))
    model, optimizer = trained()
    progress = TrainingProgress(7, 56, {"best/val_loss": 0.25}, {"val/loss": 0.3}, True, 1.5)
    store.save(snapshot(model, optimizer, progress, [random_state()]), {"attempt": 3}, b'{"rows": 1}')
    fresh, fresh_optimizer = trained(steps=1, seed=1)
    assert restore(store.open("step-000007"), fresh, fresh_optimizer) == progress
    assert equal(dict(fresh.state_dict()), dict(model.state_dict()))
    assert equal(fresh_optimizer.state_dict(), optimizer.state_dict())
    assert RunFolder(place).read(f"{CHECKPOINTS}/step-000007/{DATASET_INFO}") == b'{"rows": 1}'
    assert store.state("step-000007").attempt == 3
    assert store.latest() == ("step-000007", [])


def test_hyperparameters_are_those_of_the_config_that_resumes(store):
    model, optimizer = trained()
    (name,) = save(store, 1)
    changed = torch.optim.Adam(model.parameters(), 0.5, weight_decay=0.25)
    restore(store.open(name), model, changed)
    assert (changed.param_groups[0]["lr"], changed.param_groups[0]["weight_decay"]) == (0.5, 0.25)
    assert equal(changed.state_dict()["state"], optimizer.state_dict()["state"])


@pytest.mark.parametrize(
    ("then", "now"), [("all", "matrices"), ("matrices", "all"), ("matrices", "matrices")]
)
def test_a_parameters_state_is_its_own_whether_all_parameters_decay_or_matrices_alone(store, then, now):
    def made(decay):
        model, _ = trained(steps=0)
        return model, build_optimizer(model, OptimConfig(name="adamw", weight_decay=0.1, decay=decay))

    model, optimizer = made(then)
    model(torch.randn(8, 3)).square().sum().backward()
    optimizer.step()
    store.save(snapshot(model, optimizer, TrainingProgress(1, 8), [random_state()]), {"attempt": 1}, b"{}")
    fresh, fresh_optimizer = made(now)
    restore(store.open("step-000001"), fresh, fresh_optimizer)
    for mine, its in zip(fresh.parameters(), model.parameters(), strict=True):
        assert equal(fresh_optimizer.state[mine], optimizer.state[its])
    assert [group["weight_decay"] for group in fresh_optimizer.param_groups] == (
        [0.1] if now == "all" else [0.1, 0.0]
    )


def test_random_states_come_back_for_torch_numpy_and_python(store):
    def draw():
        return torch.rand(3).tolist(), np.random.normal(size=3).tolist(), random.random(), random.gauss(0, 1)

    draw()  # leaves Python's generator holding the second Gaussian of a pair
    model, optimizer = trained()
    store.save(
        snapshot(model, optimizer, TrainingProgress(step=1), [random_state(), random_state()]), {}, b""
    )
    expected = draw()
    draw()
    states = store.open("step-000001").random()
    assert len(states) == 2
    set_random_state(states[1])
    assert draw() == expected


def test_a_snapshot_does_not_change_while_training_goes_on():
    model, optimizer = trained()
    progress = TrainingProgress(step=1, best={"best/val_loss": 1.0})
    made = snapshot(model, optimizer, progress, [])
    weights = {name: tensor.clone() for name, tensor in made.weights.items()}
    moments = made.optimizer["state"][0]["exp_avg"].clone()
    for _ in range(2):
        model(torch.randn(5, 3)).sum().backward()
        optimizer.step()
    progress.step, progress.best["best/val_loss"] = 2, 0.5
    assert equal(made.weights, weights)
    assert torch.equal(made.optimizer["state"][0]["exp_avg"], moments)
    assert (made.progress.step, made.progress.best) == (1, {"best/val_loss": 1.0})


def test_a_spare_snapshots_memory_is_used_again_where_it_fits():
    (model, optimizer), (other, _) = trained(seed=1), trained(seed=2)
    spare = snapshot(
        other, torch.optim.Adam(other.parameters(), 0.01), TrainingProgress(step=1), []
    )  # no moments yet
    spare.weights["0.weight"] = torch.zeros(7, 7)
    places = {name: tensor.data_ptr() for name, tensor in spare.weights.items()}
    made = snapshot(model, optimizer, TrainingProgress(step=2), [], spare=spare)
    fresh = snapshot(model, optimizer, TrainingProgress(step=2), [])
    assert equal(made.weights, fresh.weights)
    assert equal(made.optimizer, fresh.optimizer)
    assert made.weights["0.weight"].shape == (4, 3)
    again = {name for name, tensor in made.weights.items() if tensor.data_ptr() == places[name]}
    assert again == made.weights.keys() - {"0.weight"}


def test_a_snapshot_becomes_spare_once_it_is_written_and_not_while_it_waits(store):
    saver, first, second = BackgroundSaver(store, {}, b"{}"), taken(1), taken(2)
    saver.hold(first)
    assert saver.take_spare() is None
    saver.save(second)
    saver.wait()
    assert saver.take_spare() is second
    assert saver.take_spare() is None


def test_tied_weights_come_back_tied(store):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.out = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
            self.out.weight = self.embed.weight

    model = Tied()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    name = store.save(snapshot(model, optimizer, TrainingProgress(step=1), []), {}, b"")
    fresh = Tied()
    restore(store.open(name), fresh, None)
    assert torch.equal(fresh.out.weight, model.embed.weight)
    assert fresh.out.weight is fresh.embed.weight


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.int64, torch.bool])
def test_weights_keep_their_type_and_odd_layouts(store, dtype):
    model = nn.Module()
    model.register_buffer("turned", torch.arange(12).reshape(3, 4).t().to(dtype))
    model.register_buffer("empty", torch.empty(0, 3, dtype=dtype))
    name = store.save(
        snapshot(model, torch.optim.SGD([torch.zeros(1)], 0.1), TrainingProgress(step=1), []), {}, b""
    )
    assert equal(store.open(name).weights(), dict(model.state_dict()))


def test_a_checkpoint_of_another_model_is_refused(store):
    (name,) = save(store, 1)
    with pytest.raises(CheckpointError, match="is of another model"):
        restore(store.open(name), nn.Linear(3, 4), None)


# Complete or absent.


def test_without_a_checkpoint_there_is_no_latest_and_no_best(store):
    assert store.names() == []
    assert store.latest() == (None, [])
    assert store.best() is None


def killed_save(folder):
    """What a save leaves that was killed before the rename."""
    part = folder.local(f"{CHECKPOINTS}/.part-killed")
    part.mkdir(parents=True)
    (part / WEIGHTS).write_bytes(b"half")
    return part


def test_a_save_that_was_killed_before_the_rename_left_no_checkpoint(store, folder):
    save(store, 1)
    killed_save(folder)
    assert store.names() == ["step-000001"]
    assert store.latest() == ("step-000001", [])


def test_what_a_killed_save_left_is_cleared_away_by_the_next(store, folder):
    part = killed_save(folder)
    save(store, 1)
    assert not part.exists()


def test_a_save_that_was_killed_before_the_manifest_left_no_checkpoint(place):
    folder = RunFolder(place)
    store = CheckpointStore(folder)
    save(store, 1)
    for file in FILES:
        folder.write(f"{CHECKPOINTS}/step-000002/{file}", b"x")
    assert store.names() == ["step-000001"]
    assert store.latest() == ("step-000001", [])
    save(store, 2)
    assert store.latest() == ("step-000002", [])


def test_checkpoints_are_ordered_by_step_beyond_the_digits_of_their_names(store):
    save(store, 999_999, 1_000_000)
    assert store.latest() == ("step-1000000", [])


@pytest.mark.parametrize("damage", [b"", b'{"model.safet', b"[]", b'{"files": {"state.json": 3}}'])
def test_a_checkpoint_with_a_damaged_manifest_is_passed_over_with_the_name_of_the_file(store, folder, damage):
    save(store, 1, 2)
    folder.write(f"{CHECKPOINTS}/step-000002/{Manifest.file}", damage)
    name, (complaint,) = store.latest()
    assert name == "step-000001"
    assert "step-000002' is corrupt (manifest.json: " in complaint


def test_a_checkpoint_of_an_earlier_version_is_sound_and_is_read(store, folder):
    """Its manifest lists the files alone, the file about the data has another name, and random states have none."""
    model, optimizer = trained()
    (name,) = save(store, 3)
    inside = f"{CHECKPOINTS}/{name}"
    states = store.open(name).random()
    stream = io.BytesIO()
    torch.save(store.open(name).optimizer() | {"random": states}, stream)
    folder.write(f"{inside}/{OPTIMIZER}", stream.getvalue())
    folder.write(f"{inside}/prepared.json", folder.read(f"{inside}/{DATASET_INFO}"))
    for file in (DATASET_INFO, RANDOM):
        folder.delete(f"{inside}/{file}")
    files = {}
    for file in (WEIGHTS, OPTIMIZER, CheckpointState.file, "prepared.json"):
        data = folder.read(f"{inside}/{file}")
        files[file] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    folder.write(f"{inside}/{Manifest.file}", json.dumps(files).encode())
    assert store.latest() == (name, [])
    assert restore(store.open(name), model, optimizer).step == 3
    assert equal(store.open_latest(SingleProcess()).random(), states)


@pytest.mark.parametrize("file", [*FILES, Manifest.file])
def test_a_damaged_checkpoint_is_passed_over_with_a_complaint_that_names_it(store, folder, file):
    save(store, 1, 2)
    if file == Manifest.file:
        folder.write(f"{CHECKPOINTS}/step-000002/{Manifest.file}", b'{"model.safet')
    else:
        corrupt(folder, "step-000002", file)
    name, (complaint,) = store.latest()
    assert name == "step-000001"
    assert "step-000002' is corrupt" in complaint
    assert file == Manifest.file or file in complaint


def test_a_checkpoint_with_a_file_cut_short_lost_or_never_listed_is_passed_over(store, folder):
    save(store, 1, 2, 3, 4)
    weights = folder.read(f"{CHECKPOINTS}/step-000002/{WEIGHTS}")
    folder.write(f"{CHECKPOINTS}/step-000002/{WEIGHTS}", weights[:-1])
    folder.delete(f"{CHECKPOINTS}/step-000003/{OPTIMIZER}")
    files = dict(folder.load(Manifest, inside=f"{CHECKPOINTS}/step-000004").files)
    files.pop(CheckpointState.file)
    folder.save(Manifest(files=files), inside=f"{CHECKPOINTS}/step-000004")
    name, complaints = store.latest()
    assert name == "step-000001"
    for file, complaint in zip((CheckpointState.file, OPTIMIZER, WEIGHTS), complaints, strict=True):
        assert file in complaint


def test_when_every_checkpoint_is_corrupt_training_does_not_start_over_silently(store, folder):
    for name in save(store, 1, 2):
        corrupt(folder, name, WEIGHTS)
    with pytest.raises(CheckpointError, match=r"step-000002' is corrupt .* no earlier one is sound"):
        store.latest()


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("file", FILES)
def test_after_a_corrupt_checkpoint_was_passed_over_the_next_one_is_saved_and_found(folder, keep, file):
    store = CheckpointStore(folder, keep)
    save(store, 10, 20)
    corrupt(folder, "step-000020", file)
    save(store, 15)  # training resumed from an earlier one
    assert store.latest()[0] == "step-000015"


def test_a_step_that_is_saved_again_replaces_what_was_there(store, folder):
    (name,) = save(store, 1)
    corrupt(folder, name, WEIGHTS)
    save(store, 1)
    assert store.latest() == (name, [])


# Retention.


def test_the_last_ones_and_the_best_are_kept(place):
    store = CheckpointStore(RunFolder(place), keep=2)
    for step in range(1, 7):
        save(store, step, best_step=min(step, 3))
    assert store.names() == ["step-000003", "step-000005", "step-000006"]
    assert store.best() == "step-000003"


def test_a_best_that_was_overtaken_is_dropped(folder):
    store = CheckpointStore(folder, keep=1)
    save(store, 1, best_step=1)
    save(store, 2, best_step=1)
    assert store.names() == ["step-000001", "step-000002"]
    save(store, 3, best_step=3)
    assert store.names() == ["step-000003"]
    assert folder.names(CHECKPOINTS) == ["step-000003"]


def test_without_any_evaluation_only_the_last_ones_are_kept(folder):
    store = CheckpointStore(folder, keep=2)
    save(store, 1, 2, 3)
    assert store.names() == ["step-000002", "step-000003"]
    assert store.best() is None


# In the background.


def test_what_is_saved_in_the_background_is_there_after_waiting(store):
    saver = BackgroundSaver(store, {"attempt": 2}, b"{}")
    for step in (1, 2):
        saver.save(taken(step))
    saver.wait()
    assert store.names() == ["step-000001", "step-000002"]
    assert store.state("step-000002").attempt == 2


def test_the_best_waits_for_the_next_checkpoint_and_is_written_before_it(store):
    saver = BackgroundSaver(store, {}, b"{}")
    for step in (1, 2):
        saver.hold(taken(step))
    saver.wait()
    assert store.names() == []
    saver.save(taken(5))
    saver.hold(taken(6))
    saver.close()
    assert store.names() == ["step-000002", "step-000005", "step-000006"]


def test_a_checkpoint_is_due_a_second_after_the_last_and_not_while_one_is_written(store, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("shoal.training.checkpoint.background.time.monotonic", lambda: now[0])
    saver = BackgroundSaver(store, {}, b"{}")
    assert saver.is_due
    saver.save(taken(1))
    saver.wait()
    assert not saver.is_due
    now[0] += 1.0
    assert saver.is_due


def test_a_save_that_failed_in_the_background_is_raised_once_at_the_next_call(store, folder):
    folder.write(CHECKPOINTS, b"a file where the folder should be")
    saver = BackgroundSaver(store, {}, b"{}")
    saver.save(taken(1))
    with pytest.raises(OSError, match="checkpoints"):
        saver.save(taken(2))
    saver.wait()


def test_while_an_object_store_is_away_training_goes_on_and_the_newest_checkpoint_waits(
    s3, object_store, monkeypatch
):
    monkeypatch.setattr("shoal.storage.failures.FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr("shoal.storage.failures.LONGEST_PAUSE_S", 0.05)
    store = CheckpointStore(RunFolder(f"{s3}/away"))
    saver = BackgroundSaver(store, {}, b"{}")
    object_store.is_away = True
    try:
        saver.save(taken(1))
        while not store.is_away:
            time.sleep(0.01)
        began = time.monotonic()
        for step in (2, 3, 4):
            saver.save(taken(step))
        assert time.monotonic() - began < 1.0
        assert saver.blocked_s < 1.0
    finally:
        object_store.is_away = False
    saver.close()
    assert store.names() == ["step-000001", "step-000004"]


def test_a_store_that_stays_away_fails_the_checkpoint_with_one_error(s3, object_store, monkeypatch):
    monkeypatch.setattr("shoal.storage.failures.FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr("shoal.storage.failures.OUTAGE_S", 0.2)
    saver = BackgroundSaver(CheckpointStore(RunFolder(f"{s3}/gone")), {}, b"{}")
    object_store.is_away = True
    try:
        saver.save(taken(1))
        with pytest.raises(StorageError, match=r"does not answer.*the same command"):
            saver.close()
    finally:
        object_store.is_away = False


def test_a_checkpoint_that_fails_leaves_no_part_behind(store, folder, monkeypatch):
    monkeypatch.setattr(
        Manifest, "to_bytes", lambda self: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full"))
    )
    with pytest.raises(
        StorageError, match=rf"{folder.uri}/checkpoints.*No space left on device.*free some space"
    ):
        save(store, 1)
    assert folder.names(CHECKPOINTS) == []


def test_a_store_that_is_away_makes_no_checkpoint_corrupt(s3, object_store, monkeypatch):
    """A resume that took it for corrupt would go on from an earlier one, or refuse for good."""
    monkeypatch.setattr("shoal.storage.failures.OUTAGE_S", 0.0)
    store, read = CheckpointStore(RunFolder(f"{s3}/sound")), RunFolder.read
    save(store, 1, 2)

    def cut(self, name):
        object_store.is_away = name.endswith(WEIGHTS)
        return read(self, name)

    monkeypatch.setattr(RunFolder, "read", cut)
    try:
        with pytest.raises(StorageError, match="does not answer"):
            store.latest()
    finally:
        object_store.is_away = False
