"""The configs for a user's own data learn what is easy to learn, from files as small as people try first."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from running import Place

MINE = """
import numpy as np
from torch import nn


def rows():
    x = np.random.default_rng(0).normal(size=(900, 3)).astype("float32")
    return {"a": x[:, 0], "b": x[:, 1], "c": x[:, 2], "target": x[:, :1] - 2 * x[:, 1:2]}


class Net(nn.Sequential):
    def __init__(self, inputs, outputs, width):
        super().__init__(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, outputs))


def loss(outputs, targets):
    return (outputs.reshape(-1) - targets.reshape(-1)).abs()
"""


def orders(folder: Path) -> None:
    draw = np.random.default_rng(0)
    frame = pd.DataFrame({"size": draw.choice(["S", "M", "L"], 800), "days": draw.integers(1, 15, 800)})
    frame["returned"] = (frame["size"] == "L") & (frame.days > 4) | (frame.days > 12)
    frame["complained"] = (frame["size"] == "S") & (frame.days > 7)
    frame.astype({"returned": int, "complained": int}).to_csv(folder / "orders.csv", index=False)


def houses(folder: Path) -> None:
    draw = np.random.default_rng(0)
    area, place = draw.uniform(30, 200, 800), draw.choice(["town", "country"], 800)
    price = 1000 * area * np.where(place == "town", 2, 1) + draw.normal(0, 5000, 800)
    pd.DataFrame({"area": area, "place": place, "price": price}).to_csv(folder / "houses.csv", index=False)


def reviews(folder: Path) -> None:
    draw = np.random.default_rng(0)
    words = {
        "good": ["lovely", "great", "wonderful", "fine", "excellent", "charming"],
        "bad": ["awful", "boring", "dreadful", "poor", "terrible", "dull"],
    }
    things = ["film", "plot", "cast", "music", "ending", "story"]
    moods = draw.choice(["good", "bad"], 800)
    texts = []
    for mood in moods:
        (one, other), (thing, part) = draw.choice(words[mood], 2), draw.choice(things, 2)
        texts.append(f"The {thing} was {one}, and the {part} {other}")
    pd.DataFrame({"review": texts, "mood": moods}).to_csv(folder / "reviews.csv", index=False)


def photos(folder: Path) -> None:
    draw = np.random.default_rng(0)
    for label, channel in (("red", 0), ("blue", 2)):
        (folder / "photos" / label).mkdir(parents=True)
        for number in range(450):
            pixels = draw.integers(0, 150, (20 + number % 5, 24, 3), dtype=np.uint8)
            pixels[4:14, 6:18, channel] = 230
            Image.fromarray(pixels).save(folder / "photos" / label / f"{number}.png")


def books(folder: Path) -> None:
    draw = np.random.default_rng(0)
    (folder / "books").mkdir()
    animals, places = draw.choice(["cat", "dog", "bird"], 60000), draw.choice(["mat", "hat", "log"], 60000)
    lines = (f"The {a} sat on the {b}, and the {b} fell.\n" for a, b in zip(animals, places, strict=True))
    (folder / "books" / "story.txt").write_text("".join(lines))


def mine(folder: Path) -> None:
    (folder / "mine.py").write_text(MINE)


# By config: what makes the files that it names, a metric, its bound, settings that save time.
CASES: dict[str, tuple[Callable[[Path], None], str, float, tuple[str, ...]]] = {
    "classification": (orders, "test/accuracy", 0.9, ()),
    "regression": (houses, "test/r2", 0.9, ()),
    "multilabel": (orders, "test/f1_macro", 0.9, ()),
    "text_classification": (reviews, "test/accuracy", 0.9, ("train.epochs=4", "data.context=32")),
    "image_classification": (photos, "test/accuracy", 0.9, ("train.epochs=2",)),
    "language_model": (books, "test/loss", 1.0, ("train.max_steps=150",)),
    "masked_language_model": (books, "test/loss", 3.0, ("train.max_steps=150",)),
    "custom": (mine, "test/loss", 0.2, ()),
}


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_a_config_for_own_data_learns(place: Place, name: str) -> None:
    make, metric, bound, settings = CASES[name]
    make(place.path)
    done = place.run("train", f"{name}.yaml", "scale.num_workers=0", *settings)
    assert done.code == 0, done.out + done.err
    assert "held out" not in done.err
    found = done.result["metrics"][metric]
    assert found <= bound if metric.endswith("loss") else found >= bound, json.dumps(done.result["metrics"])
    assert done.result["is_verified"]
