"""Small models that have learnt which of their columns decide, and rows of them."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from threadpoolctl import threadpool_limits

from shoal.explain.explanation import explain_rows
from shoal.explain.rows import answer, choose, read_features
from shoal.explain.subject import check_kind, make_subject
from shoal.inference.evaluation import split_blocks
from shoal.inference.predictor import Predictor
from shoal.tasks.open_data import reopen_source
from trained_model import train


@pytest.fixture(scope="session")
def planted(tmp_path_factory):
    """A CSV file of 20 columns, of which x3, x11 and color decide; what is decided is a class or a number."""
    draw = np.random.default_rng(0)
    rows = 900
    frame = pd.DataFrame({f"x{number}": draw.normal(5, 2, rows) for number in range(18)})
    frame["color"] = draw.choice(["red", "green", "blue"], rows)
    frame["shape"] = draw.choice(["round", "square"], rows)
    score = (frame.x3 - 5) - (frame.x11 - 5) + 3.0 * (frame.color == "red") - 1.0
    frame["sold"] = np.where(score > 0, "yes", "no")
    frame["price"] = 10 * score + 100
    path = tmp_path_factory.mktemp("planted") / "planted.csv"
    frame.drop(columns="price").to_csv(path, index=False)
    frame.drop(columns="sold").to_csv(path.with_name("price.csv"), index=False)
    return path


@pytest.fixture(scope="session")
def trained(planted, tmp_path_factory):
    """Train a model of these rows for some steps, once: its predictor."""
    made = {}

    def make(label="sold", steps=150):
        if (label, steps) not in made:
            folder = tmp_path_factory.mktemp("model")
            source, task = (
                (planted, "classification")
                if label == "sold"
                else (planted.with_name("price.csv"), "regression")
            )
            train(folder, f"csv:{source}", task, steps=steps, label=label)
            made[label, steps] = Predictor.load_own(folder / "weights")
        return made[label, steps]

    return make


@pytest.fixture(scope="session")
def rows_of():
    """Return what is explained of a predictor, and held-out rows of it."""

    def run(predictor, target=None, model=None, most=None):
        check_kind(predictor)
        source = reopen_source(predictor.preprocessing, predictor.task.name)
        blocks = split_blocks(source, predictor.preprocessing, "test")
        features = read_features(predictor, blocks)
        subject = make_subject(predictor, features.inputs)
        if model is not None:
            object.__setattr__(subject, "model", model)
        return SimpleNamespace(
            subject=subject, rows=answer(subject, features, target), transform=predictor.transform
        )

    return run


@pytest.fixture(scope="session")
def explained(rows_of):
    """Explain a predictor's model, or another of the same interface."""

    def run(predictor, method="integrated_gradients", model=None, target=None):
        made = rows_of(predictor, target, model)
        chosen = choose((0,), 1, 1, made.rows.losses, 0)
        return explain_rows(made.subject, made.transform, made.rows, method, chosen, 0)

    return run


@pytest.fixture(autouse=True)
def _one_thread():
    """Leave the other cores to other tests: threads that wait for each other take many times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(threads)
