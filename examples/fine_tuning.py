"""Fine-tuning: the layers of a model of five digits stay as they are, under a new head for the other five."""

from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from torch import Tensor, nn

import shoal

WEIGHTS = Path("pretrained")


def digits(low: int, high: int) -> tuple[np.ndarray, np.ndarray]:
    images, labels = load_digits(return_X_y=True)
    chosen = (labels >= low) & (labels < high)
    return images[chosen].astype("float32"), labels[chosen]


def first_five() -> tuple[np.ndarray, np.ndarray]:
    return digits(0, 5)


def last_five() -> tuple[np.ndarray, np.ndarray]:
    return digits(5, 10)


class Net(nn.Module):
    def __init__(self, inputs: int, outputs: int, width: int = 64) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))


PRETRAINING = {
    "data.source": first_five,
    "model.name": Net,
    "model.width": 64,
    "train.epochs": 10,
    "optim.lr": 0.005,
}

CONFIG = PRETRAINING | {"data.source": last_five, "model.freeze": ["backbone.*"], "optim.lr": 0.02}

if __name__ == "__main__":
    first = shoal.train(PRETRAINING)
    print(shoal.train(CONFIG, **{"model.init": first.folder}))
