import pytest
from pydantic import ValidationError

from shoal.config.loading import describe, load, to_yaml
from shoal.config.schema import fields, flatten
from shoal.errors import ConfigError
from shoal.runs.config import RunConfig


@pytest.fixture
def file(tmp_path):
    def write(text):
        path = tmp_path / "config.yaml"
        path.write_text(text)
        return str(path)

    return write


def refusal(*overrides, path=None):
    with pytest.raises(ConfigError) as caught:
        load(RunConfig, path, overrides)
    return str(caught.value)


def test_overrides_beat_the_file_which_beats_the_defaults(file):
    path = file("optim:\n  lr: 0.5\n  name: sgd\nseed: 3\n")
    config = load(RunConfig, path, ["optim.lr=0.25"])
    assert (config.optim.lr, config.optim.name, config.seed) == (0.25, "sgd", 3)
    assert config.optim.warmup_steps == load(RunConfig).optim.warmup_steps == 0


def test_a_later_override_beats_an_earlier_one():
    assert load(RunConfig, None, ["seed=1", "seed=2"]).seed == 2


def test_an_empty_file_means_the_defaults(file):
    assert load(RunConfig, file("# nothing\n")) == RunConfig()


def test_dotted_keys_in_a_file_join_the_section_they_name(file):
    path = file("optim:\n  name: adamw\noptim.lr: 0.1\ntrain.target: {val/accuracy: 0.9}\n")
    config = load(RunConfig, path)
    assert (config.optim.name, config.optim.lr) == ("adamw", 0.1)
    assert config.train.target == {"val/accuracy": 0.9}


def test_a_target_can_be_set_by_its_own_dotted_key():
    config = load(RunConfig, None, ["train.target.val/accuracy=0.97"])
    assert config.train.target == {"val/accuracy": 0.97}


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "1.e-3", "0.001", ".001", "1.0e-3"])
def test_every_way_to_write_a_small_float_is_that_float(file, text):
    assert load(RunConfig, None, [f"optim.lr={text}"]).optim.lr == 0.001
    assert load(RunConfig, None, [f"model.args={{dropout: {text}}}"]).model.args == {"dropout": 0.001}
    assert load(RunConfig, file(f"optim: {{lr: {text}}}")).optim.lr == 0.001


def test_what_looks_like_a_float_in_a_name_stays_text():
    assert load(RunConfig, None, ["run_name=a1e-3", "data.source=csv:1e-3.csv"]).run_name == "a1e-3"


def test_a_date_is_a_text_in_a_file_and_on_the_command_line(file):
    """YAML makes an object of it, which no key takes."""
    config = load(RunConfig, file("data: {missing: [1900-01-01]}"), ["data.label=2020-01-01"])
    assert config.data.missing == ("1900-01-01",)
    assert config.data.label == "2020-01-01"


def test_null_unsets_an_optional_key(file):
    path = file("optim.clip_norm: 1.0\n")
    assert load(RunConfig, path, ["optim.clip_norm=null"]).optim.clip_norm is None


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("optmi.lr", "optim.lr"),
        ("train.epoch", "train.epochs"),
        ("model.widht", "model.width"),
        ("num_workers", "scale.num_workers"),
        ("lr", "optim.lr"),
        ("train.lr", "optim.lr"),
        ("batch_size", "data.global_batch_size"),
        ("train.optimizer", "optim.name"),
        ("model.dropout", "model.args.dropout"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(file, key, meant):
    for message in (refusal(f"{key}=2"), refusal(path=file(f"{key}: 2\n"))):
        assert f"did you mean '{meant}'" in message
        assert "--help" in message


@pytest.mark.parametrize(
    ("override", "pieces"),
    [
        ("optim.lr=fast", ["optim.lr='fast'", "number"]),
        ("train.epochs=1.5", ["train.epochs=1.5", "integer"]),
        ("optim.lr=-0.1", ["optim.lr=-0.1", "greater than 0"]),
        ("optim.lr=.nan", ["optim.lr=nan"]),
        ("optim.lr=.inf", ["optim.lr=inf"]),
        ("optim.name=adm", ["optim.name='adm'", "'adam'", "sgd"]),
        ("data.resident=perhaps", ["data.resident='perhaps'", "auto"]),
        ("train.micro_batch_size=0", ["train.micro_batch_size=0:", "greater than or equal to 1"]),
        ("scale.num_workers=-1", ["scale.num_workers=-1", "greater than or equal to 0"]),
        ("seed=-1", ["seed=-1"]),
        ("train.target={val/accuracy: high}", ["train.target", "high"]),
        ("optim=3", ["'optim' is 3", "section", "optim.name"]),
        ("run_name=a/b", ["run_name='a/b'", "slash"]),
    ],
)
def test_a_bad_value_is_refused_with_the_key_the_value_and_the_rule(override, pieces):
    message = refusal(override)
    assert all(piece in message for piece in pieces), message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("override", "answer"),
    [
        ("data.num_workers=4", "no processes load data"),
        ("data.shuffle=true", "each epoch has an order of its own"),
        ("tune.num_samples=3", "it is a key of a sweep"),
        ("optim.lr=loguniform(1e-4,1e-1)", "try several in a sweep"),
        ("optim.lr=loguniform:1e-4:1e-1", "try several in a sweep"),
        ("optim.name=choice(adam, sgd)", "try several in a sweep"),
        ("model.width=32,64", "try several in a sweep"),
    ],
)
def test_what_other_tools_and_sweeps_take_is_explained(override, answer):
    message = refusal(override)
    assert answer in message
    assert "did you mean" not in message


def test_a_source_named_like_a_range_is_no_range():
    assert load(RunConfig, None, ["data.source=choice:make"]).data.source == "choice:make"


def test_a_config_file_that_is_not_there_is_refused_with_the_nearest_one(tmp_path, monkeypatch):
    (tmp_path / "jobs" / "configs").mkdir(parents=True)
    (tmp_path / "jobs" / "configs" / "digits.yaml").touch()
    (tmp_path / "mine.yaml").touch()
    monkeypatch.chdir(tmp_path)
    for written, meant in [
        ("jobs/configs/digit.yaml", "jobs/configs/digits.yaml"),
        ("digit.yaml", "digits.yaml"),
        ("digit", "digits.yaml"),
        ("mien.yaml", "mine.yaml"),
    ]:
        assert f"did you mean '{meant}'" in refusal(path=written)
    assert "did you mean" not in refusal(path="nothing-like-it.yaml")


def test_a_config_that_comes_with_shoal_is_found_by_its_name_unless_there_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (
        load(RunConfig, "digits.yaml").experiment_name
        == load(RunConfig, "digits").experiment_name
        == "digits"
    )
    (tmp_path / "digits.yaml").write_text("experiment_name: mine\n")
    assert load(RunConfig, "digits.yaml").experiment_name == "mine"


def test_text_without_an_equals_sign_is_refused():
    assert "key=value" in refusal("optim.lr")


def test_a_key_below_a_leaf_is_refused(file):
    assert "not a section" in refusal("optim.lr=1", path=file("optim: 3\n"))


@pytest.mark.parametrize("text", ["optim: [1, 2\n", "a: b: c\n", "\tx: 1\n"])
def test_yaml_that_does_not_parse_is_refused_with_its_place(file, text):
    message = refusal(path=file(text))
    assert "does not parse at line" in message
    assert "Traceback" not in message


def test_a_file_that_is_no_mapping_is_refused(file):
    assert "key: value" in refusal(path=file("- 1\n- 2\n"))


def test_a_file_that_is_not_there_is_refused_by_name():
    assert "'nowhere.yaml'" in refusal(path="nowhere.yaml")


@pytest.mark.parametrize(
    ("overrides", "piece"),
    [
        (["data.validation_fraction=0.6", "data.test_fraction=0.4"], "nothing to train on"),
        (["train.target={val/acuracy: 1}"], "did you mean 'val/accuracy'"),
        (["train.target={val/loss: 1}", "data.validation_fraction=0"], "validation split"),
        (["data.global_batch_size=2", "scale.num_workers=3"], "data.global_batch_size=2 is less than"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(overrides, piece):
    assert piece in refusal(*overrides)


def test_help_lists_every_key_with_its_default_and_meaning():
    lines = {line.split()[0]: line for line in describe(RunConfig).splitlines()}
    assert set(lines) == set(flatten(RunConfig()))
    for key, field in fields(RunConfig):
        assert field.description, key
        assert field.description in lines[key]
    assert "0.001" in lines["optim.lr"]
    assert "matrices|all" in lines["optim.decay"]


def test_a_config_is_frozen():
    config = RunConfig()
    with pytest.raises(ValidationError):
        config.seed = 1
    with pytest.raises(ValidationError):
        config.optim.lr = 1.0


def test_replace_changes_only_the_named_keys_checks_them_and_leaves_the_original():
    config = RunConfig()
    changed = config.replace({"optim.lr": 0.5, "model.args": {"dropout": 0.1}})
    assert changed.optim.lr == 0.5
    assert config.optim.lr == 1e-3
    assert {key for key, value in flatten(config).items() if flatten(changed)[key] != value} == {
        "optim.lr",
        "model.args",
    }
    with pytest.raises(ConfigError, match="unknown key"):
        config.replace({"optim.rl": 0.5})
    with pytest.raises(ConfigError, match="greater than 0"):
        config.replace({"optim.lr": -1})


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("lr", "(did you mean 'optim.lr'?)"),
        ("optim.rl", "(did you mean 'optim.lr'?)"),
        ("optm.lr", "(did you mean 'optim.lr'?)"),
        ("optim.learning_rate", "(did you mean 'optim.lr'?)"),
        ("learning_rate", "(did you mean 'optim.lr'?)"),
        ("data.batch_size", "(did you mean 'data.global_batch_size'?)"),
        ("scale.workers", "(did you mean 'scale.num_workers'?)"),
        ("seeds", "(did you mean 'seed'?)"),
        ("optim.momentum", "(optim has name, lr, "),
        ("zzz", "key 'zzz': "),
    ],
)
def test_an_unknown_override_is_refused_with_the_nearest_known_key(written, meant):
    with pytest.raises(ConfigError) as refused:
        load(RunConfig, None, [f"{written}=1"])
    assert meant in str(refused.value)


def test_the_resolved_config_written_as_yaml_reads_back_equal(file):
    config = load(
        RunConfig,
        None,
        ["optim.lr=1e-5", "train.target={val/loss: 0.1}", "run_name='007'", "model.args={dropout: 0.1}"],
    )
    assert load(RunConfig, file(to_yaml(config))) == config
