"""Pixels and words that decide are found, and drawn."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from shoal.data.loader import Batch
from shoal.errors import ModelError
from shoal.explain.answers import SeveralLabels
from shoal.explain.attention import attention_rollout
from shoal.explain.language import token_losses, write_rows
from shoal.explain.page import html_page
from shoal.explain.pictures import draw, draw_language
from shoal.explain.rows import read_features
from shoal.explain.subject import Subject, check_kind
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
    rows = read_features(predictor, split_blocks(source, predictor.preprocessing)).inputs
    optimizer = torch.optim.Adam(predictor.model.parameters(), 0.01)
    for _ in range(60):
        logits = predictor.model(rows[:24, :-1]).transpose(1, 2)
        torch.nn.functional.cross_entropy(logits, rows[:24, 1:]).backward()
        optimizer.step()
        optimizer.zero_grad()
    losses, constant = token_losses(predictor, rows)
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


@pytest.mark.long
def test_a_masked_model_shows_what_it_fills_in(tmp_path):
    alphabet = "abcdefghijklmnopqrstuvwxyz"  # each letter is known by its neighbours
    (tmp_path / "text.txt").write_text(alphabet * 200)
    train(tmp_path, f"text:{tmp_path}/text.txt", "masked_lm", model="bert", width=64, context=32)
    predictor = Predictor.load_own(tmp_path / "weights")
    source = reopen_source(predictor.preprocessing, predictor.task.name)
    rows = read_features(predictor, split_blocks(source, predictor.preprocessing)).inputs
    before, constant = token_losses(predictor, rows)
    assert not write_rows(predictor, rows, before, constant, {}).check.is_passed
    optimizer = torch.optim.Adam(predictor.model.parameters(), 0.003)
    for epoch in range(250):
        batch = predictor.task.view(Batch(rows, rows[:, :0], len(rows)), epoch)
        predictor.task.own_total(predictor.model(batch.inputs), batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    losses, _ = token_losses(predictor, rows)
    assert float(losses.mean()) < float(before.mean()) / 2
    found = write_rows(predictor, rows, losses, constant, {0: "chosen"})
    assert found.check.is_passed
    (text,) = found.texts
    assert text.prompt.count("[MASK]") == len(text.tokens) == round(0.15 * 32)
    filled = text.prompt
    for token in text.tokens:
        filled = filled.replace("[MASK]", token.token, 1)
    row = "".join(chr(token - 3) for token in rows[0, :32])
    assert sum(a == b for a, b in zip(filled, row, strict=True)) >= 30
    assert next(iter(draw_language(found).values())).caption.startswith("At each [MASK] of row 0 (chosen)")


class TwoLayers(torch.nn.Module):
    """Attention of one head over one-hot tokens, twice, with a residual stream that is not used."""

    def forward(self, tokens):
        there = (tokens != 0)[:, None, None, :]
        x = torch.nn.functional.one_hot(tokens, 4).float()[:, None]
        for _ in range(2):
            torch.nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=there, scale=1.0)
        return torch.zeros(len(tokens), 2)


def test_attention_rollout_is_the_product_of_layers():
    tokens = torch.tensor([[1, 2, 1, 0], [3, 0, 0, 0]])
    subject = Subject(
        "text", TwoLayers(), SeveralLabels(("a", "b")), ("0", "1", "2", "3"), torch.arange(4), torch.zeros(4)
    )
    found = attention_rollout(subject, tokens)
    same, other = np.e / (2 * np.e + 1), 1 / (2 * np.e + 1)
    attention = np.array(
        [[same, other, same], [1 / (np.e + 2), np.e / (np.e + 2), 1 / (np.e + 2)], [same, other, same]]
    )
    layer = (attention + np.eye(3)) / 2
    np.testing.assert_allclose(found[0, :3], (layer @ layer).mean(axis=0), atol=1e-7)
    assert found[:, 3].tolist() == [0.0, 0.0]
    np.testing.assert_allclose(found.sum(dim=1), 1.0)
    np.testing.assert_allclose(found[1], [1.0, 0.0, 0.0, 0.0])
    with pytest.raises(ModelError, match="does not call scaled_dot_product_attention"):
        attention_rollout(replace(subject, model=torch.nn.Linear(4, 2)), tokens.float())


@pytest.mark.long
def test_rollout_of_a_text_is_no_complete_attribution_and_says_so(text_model, explained):
    explanation = explained(text_model, method="attention_rollout")
    values, inputs = explanation.attribution.values, explanation.rows.inputs
    np.testing.assert_allclose(values.sum(dim=1), 1.0)
    assert float(values[inputs == 0].abs().max()) == 0.0
    assert "completeness" in [check.name for check in explanation.failed]
    assert all("completeness" in picture.failed for picture in draw(explanation).values())


def test_kinds_that_are_not_explained_are_refused_by_name(tmp_path):
    frame = pd.DataFrame({"x": np.arange(60.0), "a": np.arange(60.0), "b": np.arange(60) % 3 * 1.5})
    frame.to_csv(tmp_path / "rows.csv", index=False)
    source = f"csv:{tmp_path}/rows.csv"
    train(tmp_path, source, "regression", label=["a", "b"])
    with pytest.raises(ModelError, match="a model that predicts several labels is not explained"):
        check_kind(Predictor.load_own(tmp_path / "weights"))
