"""A small untrained model, fitted to rows and packaged as a run packages its own, without a training."""

from pathlib import Path

import numpy as np
from safetensors.torch import save_file

from shoal.data.config import DataConfig
from shoal.inference.description import DESCRIPTION, WEIGHTS, describe_model
from shoal.models.config import ModelConfig
from shoal.models.registry import build_model_for
from shoal.registry.package import save_model
from shoal.tasks.open_data import open_data, preprocessing_spec


def package(folder, source, task="classification", model=None, seed=0, **data):
    """Write a model of rows that `source` names into `folder/model`; return the folder of its weights."""
    from shoal.data.dataset_info import inspect_source

    config = DataConfig(source=source, global_batch_size=8, **data)
    opened = open_data(config, task, seed)
    spec = preprocessing_spec(config, task, seed, opened)
    transform = inspect_source(opened, spec).transform
    settings = ModelConfig(**(model or {"width": 8, "depth": 1}))
    net = build_model_for(settings, transform, task, seed)
    weights = Path(folder) / "weights"
    weights.mkdir(parents=True)
    # Copies, since tied weights share their memory.
    save_file({name: value.clone() for name, value in net.state_dict().items()}, weights / WEIGHTS)
    (weights / DESCRIPTION).write_text(describe_model(settings, transform, task, config, seed))
    _, block = next(iter(opened.blocks()))
    save_model(Path(folder) / "model", weights, block, settings.name)
    return Path(folder) / "model" / "data" / "weights"


def write_table(path, rows=120, seed=0):
    """Write a CSV file of two columns of numbers, one of them with gaps, one of texts, and a label."""
    import pandas as pd

    draw = np.random.default_rng(seed)
    size = draw.normal(10.0, 3.0, rows)
    table = pd.DataFrame(
        {
            "size": size,
            "count": np.where(draw.random(rows) < 0.1, np.nan, draw.integers(0, 50, rows)),
            "color": draw.choice(["red", "green", "blue"], rows),
            "target": (size > 10).astype(int),
        }
    )
    table.to_csv(path, index=False)
    return table
