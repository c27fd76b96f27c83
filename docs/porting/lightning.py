"""A LightningModule as a Shoal script: what is left of it is an nn.Module."""

import numpy as np
from sklearn.datasets import load_diabetes
from torch import Tensor, nn

import shoal


def patients() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What train_dataloader and val_dataloader read: arrays by split."""
    x, y = load_diabetes(return_X_y=True)
    return {"train": (x[:350], y[:350]), "validation": (x[350:], y[350:])}


class Regressor(nn.Module):
    def __init__(self, inputs: int, outputs: int, width: int = 32, dropout: float = 0.1) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(inputs, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, outputs)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


CONFIG = {
    "task": "regression",
    "data": {"source": patients, "global_batch_size": 32},
    "model": {"name": Regressor, "width": 32, "args": {"dropout": 0.1}},
    "optim": {"name": "adam", "lr": 0.003, "clip_norm": 1.0},
    "train": {"epochs": 50},
}

if __name__ == "__main__":
    result = shoal.train(CONFIG)
    print(result.best, result.model.predict(patients()["validation"][0][:3]))
