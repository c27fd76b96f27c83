"""Language models on a text, classifiers on a column of text and a folder of images: trained, kept, measured again."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from running import ROOT, Place

CONFIGS = ROOT / "jobs" / "configs"
ALONE = ("scale.num_workers=0", "run_name=run", "data.validation_fraction=0.1", "data.test_fraction=0.1")
SMALL = ("model.width=32", "model.depth=1", "data.context=32", "train.evaluate_every_steps=20")


@pytest.fixture
def text(place: Place) -> str:
    draw = np.random.default_rng(0)
    animals, places = draw.choice(["cat", "dog", "älg"], 3000), draw.choice(["mat", "hat", "log"], 3000)
    lines = (f"The {a} sat on the {b}, and the {b} fell.\n" for a, b in zip(animals, places, strict=True))
    (place.path / "story.txt").write_text("".join(lines))
    return "data.source=text:story.txt"


def assert_measured_again(place: Place, experiment: str, result: dict) -> None:
    done = place.run_in_process("evaluate", f"runs/{experiment}/run")
    assert done.code == 0, done.err
    for name, value in done.result["metrics"].items():
        assert result["metrics"][f"test/{name}"] == pytest.approx(value, rel=1e-4)


def test_a_decoder_learns_a_text_and_writes(place: Place, text: str) -> None:
    from mlflow import pyfunc

    settings = (*ALONE, *SMALL, text, "data.tokenizer=bpe:320", "train.max_steps=120")
    settings += ("optim.warmup_steps=10", "optim.lr=0.01")
    result = place.train(str(CONFIGS / "gpt.yaml"), *settings)
    assert result["metrics"]["val/bits_per_byte"] < 3
    assert result["is_verified"]
    assert len(result["sample"]) > 50
    assert_measured_again(place, "gpt", result)
    model = pyfunc.load_model(str(place.path / "runs/gpt/run/model"))
    spec = {"max_new_tokens": 5, "temperature": 0.0}
    first, again = (model.predict({"text": ["The cat sat on the "]}, spec)["prediction"][0] for _ in range(2))
    assert first == again


@pytest.mark.long
def test_an_encoder_learns_to_fill_in(place: Place, text: str) -> None:
    result = place.train(str(CONFIGS / "bert.yaml"), *ALONE, *SMALL, text, "train.max_steps=60")
    assert result["is_verified"]
    assert result["metrics"]["val/loss"] < 5


@pytest.mark.long
def test_a_column_of_text_is_classified(place: Place) -> None:
    draw = np.random.default_rng(0)
    words = {"pos": ["good", "great", "fine"], "neg": ["bad", "poor", "awful"]}
    rows = [f"{' '.join(draw.choice(words[mood], 3))} film,{mood}" for mood in ["pos", "neg"] * 300]
    (place.path / "reviews.csv").write_text("review,mood\n" + "\n".join(rows))
    result = place.train(
        str(CONFIGS / "bert.yaml"), *ALONE, *SMALL, "task=sequence_classification", "data.source=csv:reviews.csv",
        "data.text=review", "data.label=mood", "train.epochs=3", "train.max_steps=null",
    )  # fmt: skip
    assert result["metrics"]["test/accuracy"] > 0.95
    assert_measured_again(place, "bert", result)


def draw_images(folder: Path) -> None:
    draw = np.random.default_rng(0)
    for label in ("bright", "dark"):
        (folder / label).mkdir(parents=True)
        for number in range(60):
            low = 120 if label == "bright" else 0
            pixels = draw.integers(low, low + 120, (12 + number % 3, 14, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number}.png")


def test_a_folder_of_images_is_classified_and_broken_files_are_named(place: Place) -> None:
    draw_images(place.path / "pictures")
    settings = ("data.source=images:pictures", "data.shape=[3, 12, 12]", "data.global_batch_size=16")
    command = (str(CONFIGS / "resnet.yaml"), *ALONE, *settings, "train.epochs=4", "data.flip=true")
    result = place.train(*command)
    assert result["metrics"]["test/accuracy"] > 0.9
    assert result["is_verified"]
    (place.path / "pictures" / "dark" / "broken.png").write_bytes(b"no picture")
    done = place.run("train", *command, "run_name=other")
    assert done.code == 2
    assert "broken.png" in done.errors[0]


REFUSED = {
    "no text": (["task=causal_lm", "model.name=gpt"], ["data.text", "data.source=text:PATH"]),
    "text without a label": (["data.source=text:stdlib"], ["task=causal_lm"]),
    "no tokens for a transformer": (["model.name=gpt"], ["model.name='gpt'", "tokens", "task=causal_lm"]),
    "rows that are no images": (["model.name=resnet", "task=image_classification"], ["data.shape"]),
    "a shape that does not fit": (["data.shape=[1,9,9]"], ["81", "64"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_go_together_is_refused(place: Place, case: str) -> None:
    arguments, words = REFUSED[case]
    done = place.run_in_process("train", *arguments)
    assert done.code == 2, done.out + done.err
    assert len(done.err.splitlines()) == len(done.errors) == 1, done.err
    for word in words:
        assert word in done.errors[0]
