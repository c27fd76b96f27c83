"""A variational autoencoder of the digits: the loss has two parts, each of which is recorded."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import Dataset

import shoal


class Pixels(Dataset):
    """Items {"pixels": [64]}: black or white; what a Dataset returns is used unchanged."""

    def __init__(self) -> None:
        self.images = torch.from_numpy(load_digits().data > 8).float()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> dict[str, Tensor]:
        return {"pixels": self.images[row]}


class VAE(nn.Module):
    def __init__(self, inputs: int, width: int = 8) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, 2 * width))
        self.decoder = nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, inputs))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        noise = torch.randn_like(mean) if self.training else torch.zeros_like(mean)
        return {
            "pixels": self.decoder(mean + noise * (log_variance / 2).exp()),
            "mean": mean,
            "log_variance": log_variance,
        }


def negative_elbo(outputs: dict[str, Tensor], targets: Tensor) -> dict[str, Tensor]:
    """Return both terms of equation 10 of Kingma and Welling, 2014, for each row."""
    mean, log_variance = outputs["mean"], outputs["log_variance"]
    reconstruction = F.binary_cross_entropy_with_logits(outputs["pixels"], targets, reduction="none").sum(1)
    divergence = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(1)
    return {"reconstruction": reconstruction, "divergence": divergence}


CONFIG = {
    "task": "custom",
    "data.source": Pixels,
    "data.label": None,
    "model.name": VAE,
    "model.width": 8,
    "train.loss": negative_elbo,
    "train.epochs": 10,
    "optim.lr": 0.005,
}

if __name__ == "__main__":
    print(shoal.train(CONFIG))
