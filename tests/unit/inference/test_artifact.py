"""A saved model whose files are not those that were saved is refused before any of them is used."""

import json
import logging
import os
import shutil

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from saved_model import package, write_table
from shoal.errors import ModelError
from shoal.inference.artifact import MANIFEST, check_file_format, write_manifest
from shoal.inference.description import DESCRIPTION, WEIGHTS
from shoal.inference.golden import ANSWERS, ROWS
from shoal.inference.predictor import Predictor, _load_pyfunc

BOMB = "import pathlib\npathlib.Path({canary!r}).touch()\ndef _load_pyfunc(path): return None\n"


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("original")
    write_table(folder / "rows.csv")
    return package(folder, f"csv:{folder}/rows.csv")


@pytest.fixture
def weights(original, tmp_path):
    """The folder of weights of a model that a test may spoil."""
    shutil.copytree(original.parents[1], tmp_path / "model")
    return tmp_path / "model" / "data" / "weights"


@pytest.fixture
def canary(tmp_path):
    return tmp_path / "canary"


def refused(weights, match, **load):
    with pytest.raises(ModelError, match=match) as error:
        Predictor.load(weights, **load)
    assert error.value.exit_code == 2
    with pytest.raises(ModelError, match=match):
        _load_pyfunc(str(weights))


def change(path, text):
    """Write other text and state it in the manifest, as whoever forges a model does."""
    path.write_text(text)
    model = next(folder for folder in path.parents if (folder / "MLmodel").exists())
    write_manifest(model)


def test_a_model_as_it_was_saved_loads_and_has_a_digest(weights):
    digest = Predictor.load(weights).digest
    assert len(digest) == 12
    assert int(digest, 16) >= 0
    assert digest == Predictor.load(weights).digest == _load_pyfunc(str(weights)).digest


def test_a_loaded_model_needs_its_files_no_more(weights):
    predictor, expected = Predictor.load(weights), Predictor.load(weights).digest
    shutil.rmtree(weights.parents[1])
    assert predictor.digest == expected
    predictor.golden.check(predictor.golden_answers, weights)


def test_the_digest_is_of_all_files(weights):
    before = Predictor.load(weights).digest
    change(weights.parents[1] / "code" / "more.py", "x = 1")
    assert Predictor.load(weights).digest != before


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", [WEIGHTS, DESCRIPTION, ROWS, ANSWERS, "../../code/shoal/shoal.zip"])
@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (os.remove, "missing"),
        (flip, "not as it was saved|damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:-7]), r"bytes"),
    ],
)
def test_a_missing_truncated_or_changed_file_is_named(weights, name, spoil, match):
    path = (weights / name).resolve()
    spoil(path)
    with pytest.raises(ModelError, match=match) as error:
        Predictor.load(weights)
    assert path.name in str(error.value)


@pytest.mark.parametrize("name", ["more.json", "../../code/more.py"])
def test_a_file_that_was_not_saved_is_refused(weights, name):
    (weights / name).write_text("{}")
    refused(weights, "more.* was not saved with the model")


def test_what_python_compiled_beside_the_code_is_no_change(weights):
    cache = weights.parents[1] / "code" / "shoal" / "__pycache__"
    cache.mkdir()
    (cache / "__init__.cpython-311.pyc").write_bytes(b"compiled")
    assert Predictor.load(weights).digest


@pytest.mark.parametrize("name", ["../../../secret.json", "/etc/hostname"])
def test_a_manifest_that_names_files_outside_is_refused(weights, name):
    manifest = json.loads((weights / MANIFEST).read_text())
    manifest["files"][name] = {"bytes": 1, "sha256": "0"}
    (weights / MANIFEST).write_text(json.dumps(manifest))
    refused(weights, "outside of the model")


@pytest.mark.parametrize("text", ["{", "[]", '{"files": {"a": 1}}'])
def test_a_damaged_manifest_is_refused(weights, text):
    (weights / MANIFEST).write_text(text)
    refused(weights, r"manifest\.json' is damaged")


def test_the_pages_and_pictures_that_publishing_adds_are_allowed(weights):
    for name in ("README.md", "README.html", "confusion_matrix.png", ".part-0123"):
        (weights.parents[1] / name).write_bytes(b"")
    assert Predictor.load(weights).digest


def test_a_link_is_refused(weights, tmp_path):
    (weights / WEIGHTS).rename(tmp_path / "elsewhere.safetensors")
    (weights / WEIGHTS).symlink_to(tmp_path / "elsewhere.safetensors")
    refused(weights, "is a link")


def test_a_model_of_an_earlier_version_loads_with_a_warning(weights, caplog):
    for name in (MANIFEST, ROWS, ANSWERS):
        (weights / name).unlink()
    with caplog.at_level(logging.WARNING):
        predictor = Predictor.load(weights)
    assert len(predictor.digest) == 12
    assert predictor.golden is None
    assert [record.message for record in caplog.records if "without a manifest" in record.message]


def test_weights_that_answer_otherwise_are_refused_though_the_manifest_fits(weights):
    tensors = load_file(weights / WEIGHTS)
    name = next(name for name in tensors if name.endswith("weight"))
    save_file(tensors | {name: tensors[name] + 0.1}, weights / WEIGHTS)
    write_manifest(weights.parents[1])
    refused(weights, "does not answer its 32 golden rows.*'probabilities' of row 0 is")


# Six bombs. Each is refused, and what it would run has not run.


def test_bomb_loader_module(weights, canary):
    card = weights.parents[1] / "MLmodel"
    described = yaml.safe_load(card.read_text())
    described["flavors"]["python_function"]["loader_module"] = "bomb"
    card.write_text(yaml.safe_dump(described))
    change(weights.parents[1] / "code" / "bomb.py", BOMB.format(canary=str(canary)))
    refused(weights, "loader_module='bomb'")
    assert not canary.exists()


def test_bomb_in_code(weights, canary):
    described = json.loads((weights / DESCRIPTION).read_text())
    described["model"]["name"] = "bomb:build"
    change(weights.parents[1] / "code" / "bomb.py", BOMB.format(canary=str(canary)))
    change(weights / DESCRIPTION, json.dumps(described))
    refused(weights, "not run unasked")
    assert not canary.exists()


class Touch:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("name", ["python_model.pkl", "program.pt2", "weights.pt", "weights.bin", "rows.npy"])
@pytest.mark.parametrize("where", [".", "../.."])
def test_bomb_pickle(weights, canary, name, where):
    torch.save({"weights": Touch(canary)}, weights / where / name)
    write_manifest(weights.parents[1])
    refused(weights, rf"{name}' is of a format that a model may not hold")
    assert not canary.exists()


@pytest.mark.parametrize("location", ["../secret.data", "/etc/hostname", "sub/more.data", "link.data"])
@pytest.mark.parametrize("where", ["graph", "inner"])
def test_bomb_onnx_external_data(tmp_path, location, where):
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    (tmp_path / "secret.data").write_bytes(b"secret")
    (tmp_path / "export").mkdir()
    (tmp_path / "export" / "link.data").symlink_to(tmp_path / "secret.data")
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    node = helper.make_node("Constant", [], ["y"], value=tensor)
    inner = helper.make_graph([node], "inner", [], [helper.make_tensor_value_info("y", 1, [1])])
    branch = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    graph = helper.make_graph(
        [branch] if where == "inner" else [],
        "graph",
        [],
        [helper.make_tensor_value_info("y", 1, [1])],
        initializer=[tensor] if where == "graph" else [],
    )
    path = tmp_path / "export" / "model.onnx"
    path.write_bytes(helper.make_model(graph).SerializeToString())
    with pytest.raises(ModelError, match="external data"):
        check_file_format(path)
    assert onnx.load(str(path), load_external_data=False)


def test_external_data_beside_an_onnx_model_are_allowed(tmp_path):
    pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="model.onnx.data")
    graph = helper.make_graph([], "graph", [], [], initializer=[tensor])
    (tmp_path / "model.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    with pytest.raises(ModelError, match="missing"):
        check_file_format(tmp_path / "model.onnx")
    (tmp_path / "model.onnx.data").write_bytes(np.ones(1, np.float32).tobytes())
    check_file_format(tmp_path / "model.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"no protobuf at all")
    with pytest.raises(ModelError, match="no ONNX model"):
        check_file_format(tmp_path / "bad.onnx")


@pytest.mark.parametrize(
    ("head", "match"),
    [
        ((1 << 60).to_bytes(8, "little"), "states a header of"),
        ((1 << 63).to_bytes(8, "little"), "states a header of"),
        (b"", "states a header of"),
        ((2).to_bytes(8, "little") + b"[]", "damaged header"),
        ((2).to_bytes(8, "little") + b"{}more", "its header says 10"),
    ],
)
def test_bomb_safetensors_header(weights, head, match):
    (weights / WEIGHTS).write_bytes(head)
    write_manifest(weights.parents[1])
    refused(weights, match)
