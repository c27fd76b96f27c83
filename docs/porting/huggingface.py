"""A Hugging Face Trainer script as a Shoal script: an architecture of transformers learns the mood of reviews."""

import numpy as np
import pandas as pd

import shoal

GOOD, BAD = ["lovely", "great", "warm", "bright"], ["awful", "cold", "dull", "broken"]


def reviews(rows: int = 1200) -> pd.DataFrame:
    draw = np.random.default_rng(0)
    moods = draw.choice(["good", "bad"], rows)
    words = [draw.choice(GOOD if mood == "good" else BAD, 3) for mood in moods]
    return pd.DataFrame({"review": [f"a {' and '.join(three)} place" for three in words], "mood": moods})


CONFIG = {
    "task": "sequence_classification",
    "data": {"source": reviews, "text": "review", "label": "mood", "context": 48, "global_batch_size": 32},
    "model": {"name": "huggingface:bert", "width": 32, "depth": 2},  # "init": a folder of save_pretrained
    "optim": {"name": "adamw", "lr": 0.002, "weight_decay": 0.01, "schedule": "linear", "warmup_steps": 10},
    "train": {"epochs": 3},
}

if __name__ == "__main__":
    result = shoal.train(CONFIG)
    print(result, result.model.predict(["a dull and cold and awful place"]))
