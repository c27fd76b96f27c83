"""An autoencoder of the digits: there is no label, the targets are the inputs, standardized as those are."""

from sklearn.datasets import load_digits
from torch import Tensor, nn

import shoal


def digits() -> dict[str, object]:
    return {"pixels": load_digits().data.astype("float32")}


class Autoencoder(nn.Module):
    def __init__(self, inputs: int, width: int = 16) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, width))
        self.decoder = nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, inputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


def reconstruction(outputs: Tensor, targets: Tensor) -> Tensor:
    return ((outputs - targets) ** 2).mean(1)


CONFIG = {
    "task": "custom",
    "data.source": digits,
    "data.label": None,
    "model.name": Autoencoder,
    "model.width": 16,
    "train.loss": reconstruction,
    "train.epochs": 10,
    "optim.lr": 0.005,
}

if __name__ == "__main__":
    print(shoal.train(CONFIG))
