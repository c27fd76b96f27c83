"""What people type out of habit from other tools, and what it is called here."""

from collections.abc import Container

# By the last part of a key: the key that it stands for.
MEANT = {
    "accelerator": "scale.accelerator",
    "batch_size": "data.global_batch_size",
    "check": "dry_run",
    "d_model": "model.width",
    "dataset": "data.source",
    "device": "scale.accelerator",
    "dropout": "model.args.dropout",
    "file": "data.source",
    "fp16": "train.precision",
    "gpus": "scale.use_gpu",
    "gradient_accumulation_steps": "train.micro_batch_size",
    "hidden_dim": "model.width",
    "hidden_size": "model.width",
    "label_column": "data.label",
    "layers": "model.depth",
    "mixed_precision": "train.precision",
    "n_layer": "model.depth",
    "num_layers": "model.depth",
    "optimizer": "optim.name",
    "path": "data.source",
    "plan": "dry_run",
    "train_file": "data.source",
}
# By section: a section of sweeps alone.
OF_SWEEPS = ("space", "tune")
NO_LOADERS = (
    "no processes load data, the rows are in the workers' memory; scale.num_workers is of those that train"
)
SHUFFLED = "each epoch has an order of its own, which the seed decides"
EXPLAINED = {"data.num_workers": NO_LOADERS, "num_dataloader_workers": NO_LOADERS, "data.shuffle": SHUFFLED}
EXPLAINED |= {"dataloader_num_workers": NO_LOADERS, "shuffle": SHUFFLED}


def explanation(key: str, known: Container[str]) -> str | None:
    """Return what an unknown key is about, or None."""
    if key in EXPLAINED:
        return f"unknown key '{key}': {EXPLAINED[key]}"
    if key.partition(".")[0] in OF_SWEEPS and key.partition(".")[0] not in known:
        return f"unknown key '{key}': it is a key of a sweep: use `tune`, which takes all keys of `train` too"
    return None
