"""The peer of `throughput.py`: Lightning's Trainer with two DDP processes, its extras off."""

import argparse
import json
import logging
import time
import warnings
from pathlib import Path

import lightning
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class Classifier(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.Linear(1000, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)
        )
        self.ends: list[float] = []

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        inputs, targets = batch
        return F.cross_entropy(self.model(inputs), targets)

    def on_train_epoch_end(self) -> None:
        self.ends.append(time.time())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()

    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    lightning.seed_everything(0, verbose=False)
    with np.load(given.data) as arrays:
        dataset = TensorDataset(torch.from_numpy(arrays["features"]), torch.from_numpy(arrays["target"]))
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=given.workers,
        strategy="ddp",
        max_epochs=given.epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = Classifier()
    trainer.fit(model, DataLoader(dataset, batch_size=given.batch_size, shuffle=True))
    if trainer.is_global_zero:
        given.out.write_text(json.dumps(model.ends))


if __name__ == "__main__":
    main()
