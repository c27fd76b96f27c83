"""The peer of `startup.py`: a Ray Data dataset and `TorchTrainer.fit`, both at Ray's defaults."""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import ray
import ray.data
import ray.train
import ray.train.torch
import torch
from torch import nn


def train(config: dict[str, Any]) -> None:
    layers = nn.Sequential(nn.Linear(1000, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
    model = ray.train.torch.prepare_model(layers)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loss_function = nn.CrossEntropyLoss()
    batches = ray.train.get_dataset_shard("train").iter_torch_batches(batch_size=config["batch_size"])
    for step, batch in enumerate(batches):
        optimizer.zero_grad()
        loss = loss_function(model(batch["features"]), batch["target"])
        loss.backward()
        optimizer.step()
        if step == 0 and ray.train.get_context().get_world_rank() == 0:
            Path(config["out"]).write_text(json.dumps(time.time()))
        if step + 1 == config["steps"]:
            break


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--storage-path", required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()

    ray.init()
    with np.load(given.data) as arrays:
        frame = pd.DataFrame({"features": list(arrays["features"]), "target": arrays["target"]})
    trainer = ray.train.torch.TorchTrainer(
        train,
        train_loop_config={"batch_size": given.batch_size, "steps": given.steps, "out": str(given.out)},
        datasets={"train": ray.data.from_pandas(frame)},
        scaling_config=ray.train.ScalingConfig(num_workers=given.workers),
        run_config=ray.train.RunConfig(storage_path=given.storage_path),
    )
    trainer.fit()


if __name__ == "__main__":
    main()
