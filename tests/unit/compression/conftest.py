"""A small model of each kind, with weights as they are drawn, as a saved model's files; and its held-out rows."""

from functools import partial
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.torch import save_file

from shoal.compression.fine_tuning import FineTuning
from shoal.compression.variants import HeldOut, Maker, SavedModel
from shoal.data.config import DataConfig
from shoal.data.dataset_info import inspect_source
from shoal.data.sampler import TEST
from shoal.inference.description import DESCRIPTION, WEIGHTS, describe_model
from shoal.inference.evaluation import split_blocks
from shoal.inference.predictor import Predictor
from shoal.models.config import ModelConfig
from shoal.models.registry import build_model_for
from shoal.storage.run_folder import RunFolder
from shoal.tasks.open_data import open_data, preprocessing_spec
from shoal.training.optimizer import OptimConfig


@pytest.fixture
def subject(tmp_path):
    """Make one: its predictor, its maker of variants, its held-out rows."""

    def make(source, task="classification", name="mlp", settings=None, **data):
        config = DataConfig(source=source, global_batch_size=8, test_fraction=0.3, **data)
        opened = open_data(config, task, 0)
        spec = preprocessing_spec(config, task, 0, opened)
        info = inspect_source(opened, spec)
        about = ModelConfig(name=name, **({"width": 64, "depth": 2} | (settings or {})))
        net = build_model_for(about, info.transform, task, 0)
        folder = tmp_path / "weights"
        folder.mkdir()
        save_file({key: value.clone() for key, value in net.state_dict().items()}, folder / WEIGHTS)
        (folder / DESCRIPTION).write_text(describe_model(about, info.transform, task, config, 0))
        saved = SavedModel(Predictor.load_own(folder), folder)
        rows = HeldOut(opened, partial(split_blocks, opened, spec, TEST), TEST)
        maker = Maker(saved, rows, tmp_path / "variants")
        numbers = count()

        def tuning(epochs=1):
            run_folder = RunFolder(str(tmp_path / f"run-{next(numbers)}"))
            run_folder.create()
            run_folder.acquire_lease()
            return FineTuning(epochs, OptimConfig(lr=0.01), run_folder)

        def pruned(ratio, epochs=1, is_structured=True):
            return maker.pruned(saved, "", ratio, is_structured, tuning(epochs))

        return SimpleNamespace(
            saved=saved,
            predictor=saved.predictor,
            rows=rows,
            maker=maker,
            tuning=tuning,
            pruned=pruned,
        )

    return make


@pytest.fixture
def table(tmp_path):
    """A CSV file of numbers, of which the first says the class."""
    draw = np.random.default_rng(0)
    values = draw.normal(size=(120, 3))
    lines = ["a,b,c,y", *(f"{a},{b},{c},{'pn'[int(a > 0)]}" for a, b, c in values)]
    (tmp_path / "table.csv").write_text("\n".join(lines))
    return f"csv:{tmp_path}/table.csv"


@pytest.fixture
def images(tmp_path):
    """Images of 8x8 whose brightness is the class."""
    draw = np.random.default_rng(0)
    labels = np.arange(60) % 2
    pixels = draw.normal(size=(60, 1, 8, 8)).astype(np.float32) + labels[:, None, None, None]
    np.savez(tmp_path / "images.npz", image=pixels, y=labels)
    return f"npz:{tmp_path}/images.npz"


@pytest.fixture
def text(tmp_path):
    """Texts, each of which is in one split."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for number, word in enumerate(["cat", "dog", "owl"] * 10):
        (folder / f"{number}.txt").write_text(f"the {word} sits on the mat and counts to {number}\n" * 3)
    return f"text:{folder}"
