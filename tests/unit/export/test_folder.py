"""Folders of exports that were changed are refused before anything of them is loaded: six of them would run code."""

import json
import os
import pickle
import zipfile

import numpy as np
import onnx
import pandas as pd
import pytest

from shoal.errors import ModelError
from shoal.export import folder as folders
from shoal.export import torch_file
from shoal.inference.artifact import MANIFEST


class Bomb:
    """What unpickling it writes."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.fixture(scope="module")
def kept():
    return {}


@pytest.fixture
def exported(model, export, tmp_path, kept):
    """A good export, which is made once; and where a bomb would leave a mark."""
    if not kept:
        draw = np.random.default_rng(0)
        frame = pd.DataFrame({"x": draw.normal(size=80), "kind": draw.choice(["a", "b"], 80)})
        frame.assign(y=np.where(frame.x > 0, "p", "n")).to_csv(tmp_path / "rows.csv", index=False)
        made = model(f"csv:{tmp_path}/rows.csv", label="y")
        folder = export(made, "onnx", "torch_export").folder
        kept.update({path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*")})
    target = tmp_path / "copy"
    for path, data in kept.items():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        (target / path).write_bytes(data)
    return target


def rewrite(path, change):
    """Change members of an archive, and the manifest with them, as whoever builds a bomb would."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    reseal(path.parent)


def reseal(folder):
    (folder / MANIFEST).unlink()
    folders.write_manifest(folder)


def test_a_folder_as_it_was_written_loads(exported):
    for name in ("onnx", "torch_export"):
        loaded = folders.load(exported / name)
        prediction, probabilities = loaded.run(
            {"x": np.array([0.5]), "kind": np.array(["?"], dtype=object) if name == "onnx" else np.array([2])}
        )
        loaded.close()
        assert probabilities.shape == (1, 2)
        assert prediction[0] in (("n", "p") if name == "onnx" else (0, 1))


@pytest.mark.parametrize("damage", ["changed", "truncated", "added", "missing", "no manifest"])
def test_other_files_than_were_written_are_refused_by_name(exported, damage):
    folder = exported / "onnx"
    golden = folder / "golden.json"
    if damage == "changed":
        golden.write_text(golden.read_text().replace("0", "1", 1))
    elif damage == "truncated":
        golden.write_bytes(golden.read_bytes()[:-1])
    elif damage == "added":
        golden = folder / "more.pkl"
        golden.write_bytes(b"")
    elif damage == "missing":
        golden.unlink()
    else:
        golden = folder
        (folder / "manifest.json").unlink()
    with pytest.raises(ModelError, match=golden.name):
        folders.load(folder)


def test_answers_that_are_not_those_of_the_model_are_refused(exported):
    golden = exported / "onnx" / "golden.json"
    rows = json.loads(golden.read_text())
    rows["inputs"]["x"][0] += 1.0
    golden.write_text(json.dumps(rows))
    reseal(golden.parent)
    with pytest.raises(ModelError, match="does not answer its golden rows"):
        folders.load(golden.parent)


def of_weights(members, bomb):
    name = next(name for name in members if name.endswith("model_weights_config.json"))
    config = json.loads(members[name])
    next(iter(config["config"].values()))["use_pickle"] = True
    members[name] = json.dumps(config).encode()
    members[name.replace("model_weights_config.json", "weight_0")] = bomb


def of_samples(members, bomb):
    members[next(name for name in members if "sample_inputs" in name)] = bomb


def of_constants(members, bomb):
    top = next(iter(members)).partition("/")[0]
    members[f"{top}/data/constants/opaque_obj_0"] = bomb


def of_expression(members, bomb):
    name = next(name for name in members if name.endswith("models/model.json"))
    code = "__import__('os').system('touch bomb')"
    text = members[name].decode()
    tree = json.loads(text)
    assert replace(tree, "expr_str", code)
    members[name] = json.dumps(tree).encode()


def replace(tree, key, value):
    if isinstance(tree, dict):
        if key in tree:
            tree[key] = value
            return True
        return any(replace(branch, key, value) for branch in tree.values())
    return isinstance(tree, list) and any(replace(branch, key, value) for branch in tree)


def of_older_format(members, bomb):
    members["version"] = b"8.8"
    members["serialized_state_dict.pt"] = bomb


@pytest.mark.parametrize("plant", [of_weights, of_samples, of_constants, of_expression, of_older_format])
def test_a_file_of_torch_export_that_would_run_code_is_refused(exported, tmp_path, monkeypatch, plant):
    monkeypatch.chdir(tmp_path)
    path, canary = exported / "torch_export" / torch_file.FILE, tmp_path / "bomb"
    rewrite(path, lambda members: plant(members, pickle.dumps(Bomb(canary))))
    with pytest.raises(ModelError, match=r"model\.pt2' .*it is not loaded"):
        folders.load(path.parent)
    assert not canary.exists()


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd"])
def test_external_tensors_outside_of_the_folder_are_refused(exported, location):
    path = exported / "onnx" / "model.onnx"
    model = onnx.load(str(path))
    tensor = model.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.ClearField("raw_data")
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    path.write_bytes(model.SerializeToString())
    reseal(path.parent)
    with pytest.raises(ModelError, match=r"names external data '.*', which is no file beside it"):
        folders.load(path.parent)
