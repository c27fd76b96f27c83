"""Pixels and words that decide are found, and drawn."""

import re

import numpy as np
import pandas as pd
import pytest
import torch

from shoal.errors import ModelError
from shoal.explain.language import token_losses, write_rows
from shoal.explain.page import html_page
from shoal.explain.pictures import draw, draw_language
from shoal.explain.rows import read_features
from shoal.explain.subject import check_kind
from shoal.inference.evaluation import split_blocks
from shoal.inference.predictor import Predictor
from shoal.tasks.open_data import reopen_source
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
    planted = {
        8 * row + column
        for corner in (1, 5)
        for row in (corner, corner + 1)
        for column in (corner, corner + 1)
    }
    assert len(planted & set(pixels.tolist())) >= 0.9 * len(planted)
    pictures = draw(explanation)
    assert set(pictures) == {"importance", "faithfulness"} | {
        f"row-{row.record.row}" for row in explanation.local
    }
    assert all(picture.png.startswith(PNG) for picture in pictures.values())


@pytest.mark.long
def test_words_that_decide_are_found(text_model, explained):
    explanation = explained(text_model)
    assert explanation.subject.kind == "text"
    assert explanation.failed == []
    assert explanation.importance[0].name == "' lovely'"
    assert explanation.curves.is_better_than_random
    padding = explanation.rows.inputs == 0
    assert bool(padding.any())
    assert float(explanation.attribution.values[padding].abs().max()) == 0.0
    pictures = draw(explanation)
    assert set(pictures) == {"importance", "faithfulness"} | {
        f"row-{row.record.row}" for row in explanation.local
    }


@pytest.mark.long
def test_a_language_model_shows_what_it_writes_with_probabilities(tmp_path):
    alphabet = "abcdefghijklmnopqrstuvwxyz"  # each letter tells the next one
    (tmp_path / "text.txt").write_text(alphabet * 200)
    train(tmp_path, f"text:{tmp_path}/text.txt", "causal_lm", model="gpt", width=64, context=32)
    predictor = Predictor.load_own(tmp_path / "weights")
    check_kind(predictor)
    source = reopen_source(predictor.preprocessing, predictor.task.name)
    rows = read_features(predictor.transform, split_blocks(source, predictor.preprocessing)).inputs
    optimizer = torch.optim.Adam(predictor.model.parameters(), 0.01)
    for _ in range(60):
        logits = predictor.model(rows[:24, :-1]).transpose(1, 2)
        torch.nn.functional.cross_entropy(logits, rows[:24, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()
    losses, constant = token_losses(predictor.model, rows, predictor.transform.vocabulary)
    found = write_rows(predictor, rows, losses, constant, {0: "chosen"})
    assert found.check.is_passed
    (text,) = found.texts
    assert text.prompt + "".join(token.token for token in text.tokens) in alphabet * 5
    assert len(text.tokens) == 32
    assert text.prompt == "".join(chr(token - 3) for token in rows[0, :16])
    for token in text.tokens:
        assert token.probability >= max(token.alternatives.values())
        assert token.probability + sum(token.alternatives.values()) <= 1.0 + 1e-9
    (picture,) = draw_language(found).values()
    assert picture.png.startswith(PNG)
    page = html_page("<title>", {"rows": "1"}, [found.check], [picture], [], found.texts)
    assert "<h1>&lt;title&gt;</h1>" in page
    assert "".join(re.findall(r"<span style[^>]*>(.)</span>", page)) == "".join(t.token for t in text.tokens)


def test_kinds_that_are_not_explained_are_refused_by_name(tmp_path):
    (tmp_path / "text.txt").write_text("the cat sat on the mat. " * 300)
    train(tmp_path, f"text:{tmp_path}/text.txt", "masked_lm", model="bert", context=32)
    with pytest.raises(ModelError, match="a model of task=masked_lm is not explained: only those of"):
        check_kind(Predictor.load_own(tmp_path / "weights"))
