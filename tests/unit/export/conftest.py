"""A small model of each kind, with weights as they are drawn, written as a saved model's files; and its rows."""

from types import SimpleNamespace

import pytest
from safetensors.torch import save_file

from shoal.data.config import DataConfig
from shoal.data.dataset_info import inspect_source
from shoal.export.writer import Writer
from shoal.inference.description import DESCRIPTION, WEIGHTS, describe_model
from shoal.inference.evaluation import split_blocks
from shoal.inference.predictor import Predictor
from shoal.models.config import ModelConfig
from shoal.models.registry import build_model_for
from shoal.tasks.open_data import open_data, preprocessing_spec


@pytest.fixture
def model(tmp_path):
    """Make one: its predictor, the folder of its files, and all rows of its source."""

    def make(source, task="classification", name="mlp", seed=0, settings=None, **data):
        config = DataConfig(source=source, global_batch_size=8, **data)
        opened = open_data(config, task, seed)
        spec = preprocessing_spec(config, task, seed, opened)
        info = inspect_source(opened, spec)
        about = ModelConfig(name=name, **({"width": 16, "depth": 2} | (settings or {})))
        net = build_model_for(about, info.transform, task, seed)
        folder = tmp_path / "weights"
        folder.mkdir()
        save_file({key: value.clone() for key, value in net.state_dict().items()}, folder / WEIGHTS)
        (folder / DESCRIPTION).write_text(describe_model(about, info.transform, task, config, seed))
        return SimpleNamespace(
            predictor=Predictor.load_own(folder),
            folder=folder,
            blocks=lambda: split_blocks(opened, spec),
        )

    return make


@pytest.fixture
def export(tmp_path):
    """Write formats of a model and compare them; returns rows, differences, and the folder."""

    def run(made, *formats):
        folder = tmp_path / "export"
        with Writer(made.predictor, made.folder, folder, "the model", next(made.blocks())) as writer:
            for name in formats:
                writer.write(name)
            rows, differences = writer.compare(made.blocks())
        return SimpleNamespace(rows=rows, differences=differences, folder=folder)

    return run
