"""A generative adversarial network, which needs two optimizers in turn: Shoal has one, and says so."""

import torch
from torch import Tensor, nn

import shoal


def circle() -> dict[str, Tensor]:
    angle = torch.rand(1000, generator=torch.Generator().manual_seed(0)) * 2 * torch.pi
    return {"points": torch.stack([angle.cos(), angle.sin()], dim=1)}


class GAN(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.generator = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2))
        self.discriminator = nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, points: Tensor) -> Tensor:
        return self.discriminator(points)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.Adam(part.parameters()) for part in (self.generator, self.discriminator)]


def adversarial_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.softplus(-outputs).mean(1)


CONFIG = {
    "task": "custom",
    "data.source": circle,
    "data.label": None,
    "model.name": GAN,
    "train.loss": adversarial_loss,
}

if __name__ == "__main__":
    print(shoal.train(CONFIG))
