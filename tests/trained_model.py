"""Models of a few steps, saved, published and registered as runs do it, within seconds."""

import contextlib

import torch
from safetensors.torch import save_file

from shoal.data.config import DataConfig
from shoal.data.dataset_info import inspect_source
from shoal.data.sampler import TRAIN, VALIDATION
from shoal.inference.description import DESCRIPTION, WEIGHTS, describe_model
from shoal.inference.evaluation import evaluate_on_blocks, split_blocks
from shoal.inference.predictor import Predictor
from shoal.models.config import ModelConfig
from shoal.models.registry import build_model_for
from shoal.registry.package import save_model
from shoal.runs.finalize import held_out_rows
from shoal.storage.records import Identity, Metadata, Verified
from shoal.storage.run_folder import CONFIG, MODEL, MODEL_CARD, RunFolder
from shoal.tasks.open_data import open_data, preprocessing_spec
from shoal.tracking.sync import RunSync


def train(folder, source, task="classification", steps=0, seed=0, model="mlp", width=8, **data):
    """Train a small model and save it as a run does; returns what its run would have verified."""
    config = DataConfig(source=source, global_batch_size=8, **data)
    rows = open_data(config, task, seed)
    spec = preprocessing_spec(config, task, seed, rows)
    info = inspect_source(rows, spec)
    settings = ModelConfig(name=model, width=width, depth=1)
    net = build_model_for(settings, info.transform, task, seed)
    blocks = list(split_blocks(rows, spec, TRAIN))
    if steps:
        inputs = torch.cat([torch.from_numpy(info.transform.features(block)) for block in blocks])
        targets = torch.cat([torch.from_numpy(info.transform.targets(block)) for block in blocks])
        if info.transform.target_tree is not None:
            found, _ = info.transform.packing(is_target=True).unpack(targets)
            targets = torch.stack([part.float() for part in found.values()], dim=1)
        optimizer = torch.optim.Adam(net.parameters(), 0.02)
        for _ in range(steps):
            outputs = net(inputs)
            if info.transform.target_tree is not None:
                loss = torch.nn.functional.binary_cross_entropy_with_logits(outputs, targets)
            elif info.transform.label.classes:
                loss = torch.nn.functional.cross_entropy(outputs, targets)
            else:
                loss = (outputs.reshape(-1) - targets).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    weights = folder / "weights"
    weights.mkdir(parents=True)
    # Copies, since tied weights share their memory.
    save_file({key: value.clone() for key, value in net.state_dict().items()}, weights / WEIGHTS)
    (weights / DESCRIPTION).write_text(describe_model(settings, info.transform, task, config, seed))
    predictor = Predictor.load_own(weights)
    found = evaluate_on_blocks(predictor, split_blocks(rows, spec, VALIDATION))
    results = found.results()
    metric = predictor.task.compared_by if predictor.task.compared_by in results else "loss"
    save_model(folder / MODEL, weights, blocks[0], settings.name)
    return Verified(
        metric=f"val/{metric}",
        value=results[metric],
        data=info.fingerprint,
        held_out=held_out_rows(spec, task, VALIDATION),
    )


def publish(folder, model, is_held=False):
    """Publish a model that `train` saved as that of a run folder; return its version's number."""
    folder.put_folder(model / MODEL, MODEL, last=MODEL_CARD)
    if is_held:
        folder.acquire_lease()
    sync = RunSync(folder)
    sync.open()
    sync.close()
    return str(folder.tracked().model_version)


def register(path, name, model_name, source, **settings):
    """Train a model in the working directory `path` and register it in the store `path/mlflow.db`, as a run does.

    Returns the run's folder, `path/name`, and the version's number.
    """
    made = path / f"trained-{name}"
    with contextlib.chdir(path):
        verified = train(made, source, **settings)
    folder = RunFolder(str(path / name))
    folder.create_identity(
        name=name,
        experiment="trained",
        tracking_uri=f"sqlite:///{path}/mlflow.db",
        artifact_location=(path / "artifacts").as_uri(),
    )
    folder.update(Identity, status="FINISHED", registered_model_name=model_name, verified=verified)
    folder.write(CONFIG, b"seed: 0\n")
    folder.save(Metadata())
    return folder, publish(folder, made)
