"""Sequences of different lengths, classified by an LSTM that is told where each of them ends."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import shoal


class Walks(Dataset):
    """Items (steps [t, 2], class): does a random walk of t = 5 to 30 steps drift upwards, downwards or not?"""

    def __init__(self, rows: int = 900) -> None:
        rng = np.random.default_rng(0)
        self.classes = rng.integers(0, 3, rows)
        drift = (self.classes - 1) * 0.5
        self.walks = [
            rng.normal([0.0, drift[row]], 1.0, (rng.integers(5, 31), 2)).astype("float32")
            for row in range(rows)
        ]

    def __len__(self) -> int:
        return len(self.walks)

    def __getitem__(self, row: int) -> tuple[np.ndarray, int]:
        return self.walks[row], int(self.classes[row])


class LSTM(nn.Module):
    def __init__(self, outputs: int, width: int = 32) -> None:
        super().__init__()
        self.lstm = nn.LSTM(2, width, batch_first=True)
        self.head = nn.Linear(width, outputs)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        hidden, _ = self.lstm(x)
        return self.head(hidden[torch.arange(len(x)), lengths - 1])


CONFIG = {
    "task": "classification",
    "data.source": Walks,
    "model.name": LSTM,
    "model.width": 32,
    "train.epochs": 10,
    "optim.lr": 0.01,
    "optim.clip_norm": 1.0,
}

if __name__ == "__main__":
    print(shoal.train(CONFIG))
