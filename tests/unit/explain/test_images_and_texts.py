"""Pixels and words that decide are found, and drawn."""

import numpy as np
import pandas as pd
import pytest
import torch

from shoal.explain.pictures import draw
from shoal.inference.predictor import Predictor
from trained_model import train

PNG = b"\x89PNG"


@pytest.fixture
def image_model(tmp_path):
    """A model of images of noise, in which a bright square of the left upper or the right lower corner decides."""
    draw_ = np.random.default_rng(0)
    images, labels = draw_.normal(0, 1, (600, 1, 8, 8)).astype(np.float32), draw_.integers(0, 2, 600)
    images[labels == 0, :, 1:3, 1:3] += 2.0
    images[labels == 1, :, 5:7, 5:7] += 2.0
    np.savez(tmp_path / "images.npz", image=images, label=labels)
    train(tmp_path, f"npz:{tmp_path}/images.npz", steps=60, label="label")
    return Predictor.load_own(tmp_path / "weights")


@pytest.fixture
def text_model(tmp_path):
    """A model of sentences in which one of two words decides."""
    draw_ = np.random.default_rng(0)
    words = ["the", "shop", "was", "very", "small", "and", "we", "came"]
    labels = draw_.integers(0, 2, 400)
    texts = []
    for label in labels:
        sentence = draw_.choice(words, 6).tolist()
        sentence[draw_.integers(6)] = ("awful", "lovely")[label]
        texts.append(" ".join(sentence))
    frame = pd.DataFrame({"text": texts, "mood": np.where(labels == 1, "good", "bad")})
    frame.to_csv(tmp_path / "texts.csv", index=False)
    train(
        tmp_path,
        f"csv:{tmp_path}/texts.csv",
        "sequence_classification",
        steps=60,
        model="bert",
        width=64,
        label="mood",
        text="text",
        context=16,
        tokenizer="bpe:320",
    )
    return Predictor.load_own(tmp_path / "weights")


def test_pixels_that_decide_are_found(image_model, explained):
    explanation = explained(image_model)
    assert explanation.subject.kind == "image"
    assert explanation.failed == []
    pixels = np.argsort(-explanation.pixels.reshape(-1))[:8]
    planted = {8 * row + column for corner in (1, 5) for row in (corner, corner + 1) for column in (corner, corner + 1)}
    assert len(planted & set(pixels.tolist())) >= 0.9 * len(planted)
    pictures = draw(explanation)
    assert set(pictures) == {"importance", "faithfulness"} | {f"row-{row.record.row}" for row in explanation.local}
    assert all(png.startswith(PNG) for png in pictures.values())


def test_words_that_decide_are_found(text_model, explained):
    explanation = explained(text_model)
    assert explanation.subject.kind == "text"
    print(explanation.checks, explanation.importance[:6], explanation.curves.areas(), explanation.local[0].record)
    pictures = draw(explanation)
    for n, png in pictures.items():
        open(f"/tmp/h/{n}.png", "wb").write(png)
    assert explanation.failed == []
