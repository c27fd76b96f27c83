"""A saved model loads with the Shoal of its own archive, and has few files."""

import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import save_file

from shoal.data.dataset_info import inspect_source
from shoal.data.sources.function import source_from_value
from shoal.inference.description import DESCRIPTION, WEIGHTS, describe_model
from shoal.inference.predictor import Predictor
from shoal.models.config import ModelConfig
from shoal.models.registry import build_model
from shoal.registry.package import _widest, save_model

LOAD = """
import json, sys
from mlflow import pyfunc
import pandas as pd

model = pyfunc.load_model(sys.argv[1])
import shoal.inference.predictor
predicted = model.predict(pd.read_json(sys.argv[2], orient="records"))
print(json.dumps([shoal.inference.predictor.__file__, predicted["prediction"].tolist()]))
"""


@pytest.mark.long
def test_a_model_has_few_files_and_loads_with_its_own_shoal(preprocessing, rows, tmp_path):
    made = preprocessing(is_classification=True)
    info = inspect_source(source_from_value("mine:rows", rows), made)
    config, data, path = ModelConfig(depth=1), tmp_path / "weights", tmp_path / "model"
    data.mkdir()
    model = build_model(config, info.transform.input_shape, info.transform.outputs, seed=3)
    save_file(model.state_dict(), data / WEIGHTS)
    (data / DESCRIPTION).write_text(
        describe_model(config, info.transform, "classification", made.data, made.seed)
    )
    some = {name: column[:20] for name, column in rows.items() if name != "target"}
    save_model(path, data, some, "mlp")
    assert len([file for file in path.rglob("*") if file.is_file()]) <= 13

    table = tmp_path / "rows.json"
    table.write_text(pd.DataFrame(some).to_json(orient="records"))
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(path), str(table)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    file, predicted = json.loads(done.stdout.splitlines()[-1])
    assert file == str(path / "code" / "shoal" / "shoal.zip" / "shoal" / "inference" / "predictor.py")
    assert predicted == Predictor.load_own(data).predict(some)["prediction"].tolist()


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int64", "bool"])
def test_arrays_of_any_width_fit_a_signature_and_so_do_their_numbers_from_json(dtype):
    from mlflow.models import infer_signature
    from mlflow.models.utils import _enforce_schema
    from mlflow.types import ColSpec, Schema

    table = pd.DataFrame({"one": [np.ones(3, dtype)] * 2, "two": [np.ones((2, 2), dtype)] * 2})
    found = infer_signature(table).inputs
    schema = Schema([ColSpec(_widest(spec.type), spec.name) for spec in found])
    for rows in (table, pd.DataFrame({name: [array.tolist() for array in table[name]] for name in table})):
        assert len(_enforce_schema(rows, schema)) == 2
