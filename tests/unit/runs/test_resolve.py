"""Which folder a run gets: new, continued or refused; of earlier versions too."""

import re

import pytest
import yaml

from shoal.config.loading import load, to_yaml
from shoal.errors import ConfigError, StorageError, UserError
from shoal.runs.config import RunConfig
from shoal.runs.resolve import as_begun, finished_result, resolve_run_folder
from shoal.storage import leased_folder
from shoal.storage.leased_folder import LeasedFolder
from shoal.storage.records import Identity, Lease, Result, SweepResult, TrainResult
from shoal.storage.run_folder import CONFIG, RunFolder
from shoal.tune.config import SweepConfig, load_sweep
from shoal.workflows.coordinate_check import CoordinateConfig
from shoal.workflows.transfer import load_transfer

RESULT = {"status": "FINISHED", "run_name": "run", "run_folder": "somewhere"}


@pytest.fixture
def config(tmp_path):
    """Make a config: `config("optim.lr=0.5")`."""

    def make(*settings, kind=RunConfig):
        return load(kind, None, [f"storage_path={tmp_path}", *settings])

    return make


def begin(config, status="FAILED", is_alive=False):
    """Make the folder of a run that was begun with a config, as the lifecycle leaves it."""
    folder = resolve_run_folder(config)
    name = folder.uri.rpartition("/")[2]
    folder.create_identity(name=name, experiment=config.experiment_name)
    folder.write(CONFIG, to_yaml(config.replace({"run_name": name})).encode())
    folder.acquire_lease()
    if not is_alive:
        folder.release_lease()
    folder.save(Result(status=status, run_name=name, run_folder=folder.uri))
    return folder


# A run with a name.


def test_a_new_name_gets_a_folder_below_its_experiment_and_nothing_is_created(config, tmp_path):
    folder = resolve_run_folder(config("run_name=mine", "experiment_name=trials"))
    assert folder.uri == f"{tmp_path}/trials/mine"
    assert list(tmp_path.iterdir()) == []


def test_the_same_config_continues_the_run_whatever_may_differ_differs(config):
    folder = begin(config("run_name=mine"))
    assert resolve_run_folder(config("run_name=mine", "scale.num_workers=4")).uri == folder.uri


@pytest.mark.parametrize(
    ("setting", "difference"),
    [("optim.lr=0.5", "optim.lr: 0.001 then, 0.5 now"), ("seed=1", "seed: 0 then, 1 now")],
)
def test_another_config_is_refused_with_what_differs(config, setting, difference):
    begin(config("run_name=mine"))
    with pytest.raises(ConfigError, match=difference):
        resolve_run_folder(config("run_name=mine", setting))


def forget(folder, key):
    """Leave a key out of a folder's stored config, as versions that did not know it did."""
    tree = yaml.safe_load(folder.read(CONFIG))
    section, _, leaf = key.rpartition(".")
    del tree[section][leaf]
    folder.write(CONFIG, yaml.safe_dump(tree).encode())


@pytest.mark.parametrize("name", ["run_name=mine", "run_name=null"])
def test_a_run_that_was_begun_before_weight_decay_spared_anything_goes_on_as_it_was(config, caplog, name):
    again = config(name, "optim.weight_decay=0.1")
    folder = begin(again)
    assert as_begun(again, folder).optim.decay == "matrices"
    forget(folder, "optim.decay")
    assert resolve_run_folder(again).uri == folder.uri
    assert not caplog.records
    assert as_begun(again, folder) == again.replace({"optim.decay": "all"})
    assert "optim.decay=all" in caplog.text


def test_a_new_run_is_as_its_config_says(config):
    new = config("run_name=mine")
    assert as_begun(new, resolve_run_folder(new)) == new


def test_another_choice_of_what_decays_is_another_config(config):
    begin(config("run_name=mine"))
    with pytest.raises(ConfigError, match=r"optim\.decay: matrices then, all now"):
        resolve_run_folder(config("run_name=mine", "optim.decay=all"))
    first = begin(config())
    assert (
        resolve_run_folder(config("optim.decay=all")).uri.rpartition("-")[0] != first.uri.rpartition("-")[0]
    )


def test_if_exists_fail_refuses_and_new_numbers_the_folder(config):
    first = begin(config("run_name=mine"))
    with pytest.raises(ConfigError, match="if_exists=fail"):
        resolve_run_folder(config("run_name=mine", "if_exists=fail"))
    second = resolve_run_folder(config("run_name=mine", "if_exists=new"))
    assert second.uri == f"{first.uri}-2"
    second.create_identity(name="mine-2", experiment="shoal")
    assert resolve_run_folder(config("run_name=mine", "if_exists=new")).uri == f"{first.uri}-3"


def test_a_run_that_a_live_process_holds_is_refused_with_that_process(config):
    folder = begin(config("run_name=mine"), is_alive=True)
    with pytest.raises(
        StorageError, match=rf"is being worked on by process {folder.holder().pid} on \w+, since"
    ):
        resolve_run_folder(config("run_name=mine"))


def test_a_lease_of_a_process_that_is_gone_does_not_hold_the_run(config, gone_process):
    folder = begin(config("run_name=mine"))
    folder.save(gone_process.replace(attempt=2), inside="attempts/0002")
    assert resolve_run_folder(config("run_name=mine")).uri == folder.uri


@pytest.mark.parametrize("kinds", [(SweepConfig, RunConfig), (CoordinateConfig, RunConfig)])
def test_a_job_of_another_kind_under_the_same_name_is_refused(config, kinds):
    earlier, now = kinds
    begin(config("run_name=mine", "scale.num_workers=1", kind=earlier))
    with pytest.raises(ConfigError, match="is of another kind of job"):
        resolve_run_folder(config("run_name=mine", "scale.num_workers=1", kind=now))


def test_a_folder_that_cannot_be_written_is_refused(config, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StorageError, match="cannot be written"):
        resolve_run_folder(config(f"storage_path={tmp_path}/file/below"))


# A run without a name.


def test_a_run_whose_driver_was_on_another_host_is_watched_and_then_continued(config, monkeypatch, caplog):
    """The host may be gone; where its driver lives, the lease changes meanwhile and another run begins."""
    monkeypatch.setattr(leased_folder, "LEASE_S", 0.2)
    monkeypatch.setattr(leased_folder, "WATCH_EVERY_S", {True: 0.01})
    folder = begin(config(), status="RUNNING", is_alive=True)
    lease = folder.lease().replace(host="elsewhere")
    folder.save(lease, inside="attempts/0001")
    assert resolve_run_folder(config()).uri == folder.uri
    assert re.search(r"on elsewhere, since .*: waiting 0 s for a sign of life", caplog.text)
    beats = iter(range(1, 1000))
    monkeypatch.setattr(
        LeasedFolder,
        "lease",
        lambda self: lease.replace(beat=next(beats)) if self.exists("run.json") else None,
    )
    assert resolve_run_folder(config()).uri == f"{folder.uri.removesuffix('-1')}-2"


def test_an_unfinished_run_of_the_same_config_is_continued_and_a_finished_one_is_not(config):
    first = begin(config())
    assert resolve_run_folder(config()).uri == first.uri
    assert resolve_run_folder(config("optim.lr=0.5")).uri != first.uri
    first.save(TrainResult(**RESULT))
    assert resolve_run_folder(config()).uri == first.uri.removesuffix("-1") + "-2"


@pytest.mark.parametrize("if_exists", ["fail", "new"])
def test_an_unfinished_run_is_left_alone_unless_it_may_be_resumed(config, if_exists):
    first = begin(config())
    assert resolve_run_folder(config(f"if_exists={if_exists}")).uri == first.uri.removesuffix("-1") + "-2"


def test_an_unnamed_run_that_a_live_process_holds_is_left_alone(config):
    first = begin(config(), is_alive=True)
    assert resolve_run_folder(config()).uri == first.uri.removesuffix("-1") + "-2"


# Earlier versions.


def test_names_that_are_made_of_the_config_are_those_of_the_earlier_version(tmp_path):
    """As version 405cdcc made them: its unfinished runs, sweeps and transfers are found again."""
    place = f"storage_path={tmp_path}"
    text = ["data.source=text:corpus/*.txt", "task=causal_lm", "model.name=gpt"]
    configs = [
        load(RunConfig, None, [place]),
        load_sweep(None, [place, "tune.search=optuna"]),
        load_transfer(None, [place, *text], "model.width=512"),
    ]
    assert [resolve_run_folder(config).uri.rpartition("/")[2] for config in configs] == [
        "mlp-sklearn-digits-eac69c-1",
        "sweep-mlp-sklearn-digits-90806a-1",
        "transfer-gpt--txt-e918be-1",
    ]


def test_a_folder_with_a_slash_at_its_end_gives_the_run_its_name(tmp_path):
    config = load(
        RunConfig, None, [f"storage_path={tmp_path}", "data.source=text:a/books/", "task=causal_lm"]
    )
    assert "/mlp-books-" in resolve_run_folder(config).uri


def stored(folder, **sections):
    """Add keys to the sections of a stored config."""
    tree = yaml.safe_load(folder.read(CONFIG))
    for section, keys in sections.items():
        tree[section] |= keys
    folder.write(CONFIG, yaml.safe_dump(tree).encode())


def test_keys_that_this_version_does_not_know_do_not_count(config, caplog):
    settings = ["run_name=mine", "scale.num_workers=1"]
    folder = begin(config(*settings, kind=SweepConfig))
    stored(
        folder, tune={"no_such_key": "auto"}, optim={"no_such_key": {"deep": 1}}, scale={"engine": "process"}
    )
    assert resolve_run_folder(config(*settings, kind=SweepConfig)).uri == folder.uri
    assert caplog.messages == []


def test_a_value_that_this_version_refuses_is_named(config):
    settings = ["run_name=mine", "scale.num_workers=1"]
    folder = begin(config(*settings, kind=SweepConfig))
    stored(folder, tune={"search": "no_such_search"})
    with pytest.raises(
        ConfigError, match=r"this version refuses .*tune.search='no_such_search'.*if_exists=new"
    ):
        resolve_run_folder(config(*settings, kind=SweepConfig))


# Damage.


@pytest.mark.parametrize("damage", [b"", b'{"key": "0'])
@pytest.mark.parametrize("kind", [Identity, Lease])
@pytest.mark.parametrize("settings", [("run_name=mine",), ()], ids=["named", "unnamed"])
def test_a_damaged_file_is_named_before_anything_starts(config, kind, damage, settings):
    folder = begin(config(*settings))
    folder.write(f"attempts/0001/{kind.file}" if kind is Lease else kind.file, damage)
    with pytest.raises(UserError, match=rf"{kind.file}' is damaged") as caught:
        resolve_run_folder(config(*settings))
    assert caught.value.exit_code == 2
    assert kind.remedy in str(caught.value)


@pytest.mark.parametrize("damage", [b"", b"seed: [1", b"- 1\n", b"\xff\xfe\x00"])
def test_a_damaged_config_is_named_with_a_remedy(config, damage):
    folder = begin(config("run_name=mine"))
    folder.write(CONFIG, damage)
    with pytest.raises(StorageError, match=r"config.yaml' is damaged .*if_exists=new"):
        resolve_run_folder(config("run_name=mine"))


def test_a_damaged_run_can_be_begun_again_under_a_new_name(config):
    folder = begin(config("run_name=mine"))
    for file in (Identity.file, Lease.file, Result.file, CONFIG):
        folder.write(file, b"")
    assert resolve_run_folder(config("run_name=mine", "if_exists=new")).uri == f"{folder.uri}-2"


def test_a_damaged_result_is_named_and_only_a_finished_one_counts(tmp_path):
    folder = RunFolder(str(tmp_path))
    assert finished_result(folder, TrainResult) is None
    folder.save(TrainResult(**RESULT | {"status": "FAILED"}))
    assert finished_result(folder, TrainResult) is None
    folder.save(TrainResult(**RESULT))
    assert finished_result(folder, TrainResult).run_name == "run"
    with pytest.raises(StorageError, match=r"result.json' is damaged \(metric: "):
        finished_result(folder, SweepResult)
    folder.write(Result.file, b'{"status": "FINI')
    with pytest.raises(StorageError, match=r"result.json' is damaged .*delete the file"):
        finished_result(folder, TrainResult)
