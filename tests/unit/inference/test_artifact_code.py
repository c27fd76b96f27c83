"""What a saved model's description may run: nothing unasked, and when asked only the model's own code."""

import importlib.util
import json
import py_compile
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
from safetensors.torch import save_file

from shoal.data.dataset_info import inspect_source
from shoal.data.sources.function import source_from_value
from shoal.errors import ModelError
from shoal.inference import predictor as predictor_module
from shoal.inference.description import DESCRIPTION, WEIGHTS, Description, describe_model
from shoal.inference.predictor import Predictor
from shoal.models.config import ModelConfig
from shoal.models.registry import build_model
from shoal.workflows.evaluate import EvaluateConfig, evaluate

OWN = """
import pathlib
from os import system
from torch import nn

pathlib.Path({canary!r}).touch()

class Net(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.layer = nn.Linear(inputs, outputs)

    def forward(self, x):
        return self.layer(x)

def make(inputs, outputs):
    return Net(inputs, outputs)
"""


@pytest.fixture
def canary(tmp_path):
    return tmp_path / "canary"


@pytest.fixture
def saved(preprocessing, rows, tmp_path, monkeypatch):
    """Return a function that saves a model like MLflow's, with a description changed as given; returns its weights."""
    made = preprocessing(is_classification=True)
    info = inspect_source(source_from_value("mine:rows", rows), made)
    modules = set(sys.modules)

    def save(code="", **changes):
        folder = tmp_path / "model" / "data" / "weights"
        shutil.rmtree(tmp_path / "model", ignore_errors=True)
        folder.mkdir(parents=True)
        (tmp_path / "model" / "code").mkdir()
        (tmp_path / "model" / "code" / "bomb.py").write_text(code)
        config = ModelConfig(depth=0)
        model = build_model(config, info.transform.input_shape, info.transform.outputs, seed=3)
        tensors = {name.replace("layers.0", "layer"): tensor for name, tensor in model.state_dict().items()}
        save_file(tensors if code else model.state_dict(), folder / WEIGHTS)
        described = json.loads(describe_model(config, info.transform, "classification", made.data, made.seed))
        for section, values in changes.items():
            described[section] |= values
        (folder / DESCRIPTION).write_text(json.dumps(described))
        return folder

    monkeypatch.setattr(sys, "path", list(sys.path))
    yield save
    for name in set(sys.modules) - modules:
        if name.partition(".")[0] in ("bomb", "source"):
            del sys.modules[name]


@pytest.mark.parametrize("trust_code", [False, True])
@pytest.mark.parametrize(
    "name", ["os:system", "subprocess:call", "bomb:system", "bomb:pathlib", "bomb:nothing"]
)
def test_a_name_that_is_not_of_the_models_own_code_is_not_called(saved, canary, name, trust_code):
    folder = saved(
        "from os import system\nimport pathlib\n",
        model={"name": name, "args": {"command": f"touch {canary}"}},
    )
    with pytest.raises(ModelError, match=r"description\.json") as refused:
        Predictor.load(folder, trust_code=trust_code)
    assert refused.value.exit_code == 2
    assert not canary.exists()


def test_a_module_of_the_same_name_that_is_imported_already_is_not_the_models_own(saved, canary):
    folder = saved(model={"name": "os:system", "args": {"command": f"touch {canary}"}})
    (folder.parents[1] / "code" / "os.py").write_text("def system(**_): pass")
    with pytest.raises(ModelError, match="no class or function of the model's own code"):
        Predictor.load(folder, trust_code=True)
    assert not canary.exists()


def test_own_code_is_not_even_imported_unasked(saved, canary):
    folder = saved(OWN.format(canary=str(canary)), model={"name": "bomb:Net"})
    with pytest.raises(
        ModelError, match=r"description\.json' names the model's own code, 'bomb:Net'.*trust_code=true"
    ):
        Predictor.load(folder)
    with pytest.raises(ModelError, match="SHOAL_TRUST_CODE=1"):
        predictor_module._load_pyfunc(str(folder))
    assert not canary.exists()


@pytest.mark.parametrize("name", ["bomb:Net", "bomb:make"])
def test_own_code_builds_the_model_when_it_is_trusted(saved, rows, canary, monkeypatch, name):
    folder = saved(OWN.format(canary=str(canary)), model={"name": name})
    frame = pd.DataFrame(rows)
    predicted = Predictor.load(folder, trust_code=True).predict(frame)
    assert canary.exists()
    monkeypatch.setenv("SHOAL_TRUST_CODE", "1")
    pd.testing.assert_frame_equal(predictor_module._load_pyfunc(str(folder)).predict(frame), predicted)


def test_what_python_compiled_is_not_run_in_place_of_trusted_code(saved, canary, tmp_path):
    folder = saved(OWN.format(canary=str(tmp_path / "own")), model={"name": "bomb:Net"})
    code = folder.parents[1] / "code"
    (tmp_path / "other.py").write_text(f"import pathlib\npathlib.Path({str(canary)!r}).touch()\n")
    unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
    compiled = importlib.util.cache_from_source(str(code / "bomb.py"))
    py_compile.compile(str(tmp_path / "other.py"), compiled, invalidation_mode=unchecked)
    Predictor.load(folder, trust_code=True)
    assert (tmp_path / "own").exists()
    assert not canary.exists()


@pytest.mark.parametrize("trust_code", [False, True])
def test_the_function_that_a_description_names_as_its_data_is_not_called(saved, canary, trust_code):
    folder = saved(data={"source": f"os:system?command=touch%20{canary}"})
    predictor = Predictor.load(folder)
    with pytest.raises(ModelError, match=r"data\.source='os:system"):
        evaluate(predictor, EvaluateConfig(trust_code=trust_code))
    assert not canary.exists()


def test_a_function_of_the_working_directory_is_called_when_it_is_trusted(saved, rows, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pd.DataFrame(rows).to_csv("rows.csv", index=False)
    Path("source.py").write_text("import pandas\ndef rows():\n    return pandas.read_csv('rows.csv')\n")
    predictor = Predictor.load(saved(data={"source": "source:rows"}))
    with pytest.raises(ModelError, match="not called unasked"):
        evaluate(predictor, EvaluateConfig())
    assert evaluate(predictor, EvaluateConfig(trust_code=True)).split == "test"


def test_a_description_that_holds_something_else_is_named(saved):
    folder = saved(model={"width": "wide"})
    with pytest.raises(ModelError, match=r"description\.json' is damaged \(.*width"):
        Description.load(folder / DESCRIPTION)


def test_a_config_of_transformers_runs_no_code_of_its_folder(tmp_path, canary):
    from shoal.models.huggingface_config import ArchitectureConfig

    (tmp_path / "bomb.py").write_text(f"import pathlib\npathlib.Path({str(canary)!r}).touch()\n")
    config = {"model_type": "bomb", "auto_map": {"AutoConfig": "bomb.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"config\.json"):
        ArchitectureConfig("gpt2", str(tmp_path))
    assert not canary.exists()
