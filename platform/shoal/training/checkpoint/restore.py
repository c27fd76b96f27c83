"""A checkpoint put back into a model and its optimizer, whole or from shards."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from shoal.distributed import dtensor_io
from shoal.errors import CheckpointError
from shoal.training.checkpoint.contents import MODEL_KEY, OPTIMIZER_KEY, TrainingProgress, keyed_tensors
from shoal.training.checkpoint.files import CheckpointFiles
from shoal.training.ema import EMA
from shoal.training.optimizer_state import load_state_by_number, parameters_by_number


class HasState(Protocol):
    """What takes its state from a checkpoint by itself."""

    def load_state_dict(self, states: Mapping[str, Any]) -> None: ...


def restore(
    checkpoint: CheckpointFiles,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    scaler: GradScaler | None = None,
    ema: EMA | None = None,
    callbacks: HasState | None = None,
) -> TrainingProgress:
    """Load weights and optimizer state in place, however they were and are divided, and return the progress.

    Groups and hyperparameters of the optimizer stay as they are.

    Without an optimizer the model gets the weights that the run is for. A checkpoint made without scaler or average
    is good: they begin anew.

    Raises:
        CheckpointError: the checkpoint is of another model.
    """
    more = {} if optimizer is None else checkpoint.optimizer()
    saved: dict[str, Any] = more.get("optimizer", {"state": {}})
    if checkpoint.has_shards:
        state = _with_tensors(saved["state"], _load_shards(checkpoint, model, optimizer))
    else:
        _load_weights(checkpoint, model)
        state = {} if optimizer is None else _own_part(saved["state"], optimizer)
    if optimizer is not None:
        load_state_by_number(optimizer, saved | {"state": state})
        _restore_more(more, model, scaler, ema)
        if callbacks:
            callbacks.load_state_dict(more.get("callbacks", {}))
    return checkpoint.progress()


def _restore_more(
    states: Mapping[str, Any], model: nn.Module, scaler: GradScaler | None, ema: EMA | None
) -> None:
    """Go on with scaler and average; the weights that were loaded are the average, where one is kept."""
    if scaler and "scaler" in states:
        scaler.load_state_dict(states["scaler"])
    if ema:
        ema.restart()
    if "trained" in states:
        model.load_state_dict(states["trained"])


def _load_weights(checkpoint: CheckpointFiles, model: nn.Module) -> None:
    own, weights = model.state_dict(), checkpoint.weights()
    try:
        model.load_state_dict(
            {key: dtensor_io.distribute_like(weights[key], own.get(key, weights[key])) for key in weights}
        )
    except RuntimeError as error:
        raise _other_model(checkpoint.name, str(error).splitlines()[-1].strip()) from None


def _own_part(
    state: Mapping[int, Mapping[str, Any]], optimizer: torch.optim.Optimizer
) -> dict[int, dict[str, Any]]:
    """Return this worker's part of an optimizer's whole state, by the number of its parameter."""
    parameters = parameters_by_number(optimizer)
    return {
        number: {
            key: dtensor_io.distribute_like(value, parameters[number]) if isinstance(value, Tensor) else value
            for key, value in values.items()
        }
        for number, values in state.items()
    }


def _with_tensors(
    state: Mapping[int, Mapping[str, Any]], tensors: Mapping[int, Mapping[str, Tensor]]
) -> dict[int, dict[str, Any]]:
    """Return state with the tensors that lie in shards."""
    numbers = sorted(state.keys() | tensors.keys())
    return {number: {**state.get(number, {}), **tensors.get(number, {})} for number in numbers}


def _load_shards(
    checkpoint: CheckpointFiles, model: nn.Module, optimizer: torch.optim.Optimizer | None
) -> dict[int, dict[str, Tensor]]:
    """Load weights from all workers' shards, and return this worker's part of the optimizer's state."""
    shards = checkpoint.shards()
    saved = shards.contents()
    wanted = keyed_tensors(model.state_dict(), {})
    own = {key: tuple(tensor.shape) for key, tensor in wanted.items()}
    its = {key: tuple(size) for key, (size, _) in saved.items() if key.startswith(f"{MODEL_KEY}/")}
    for key in sorted(own.keys() | its.keys()):
        if own.get(key) != its.get(key):
            raise _other_model(checkpoint.name, f"{key} has shape {its.get(key)} there, {own.get(key)} here")
    state = _empty_state(saved, [] if optimizer is None else parameters_by_number(optimizer))
    shards.fill(wanted | keyed_tensors({}, state))
    return state


def _empty_state(
    saved: Mapping[str, tuple[torch.Size, torch.dtype]], parameters: Sequence[Tensor]
) -> dict[int, dict[str, Tensor]]:
    """Return tensors for the saved state of each parameter, divided as it is where they have its shape."""
    state: defaultdict[int, dict[str, Tensor]] = defaultdict(dict)
    for key, (size, dtype) in saved.items():
        kind, _, rest = key.partition("/")
        if kind == OPTIMIZER_KEY and parameters:
            number, _, of_state = rest.partition("/")
            parameter = parameters[int(number)].detach()
            like = size == parameter.shape
            state[int(number)][of_state] = (
                torch.zeros_like(parameter, dtype=dtype) if like else torch.zeros(size, dtype=dtype)
            )
    return state


def _other_model(name: str, reason: str) -> CheckpointError:
    return CheckpointError(
        f"checkpoint '{name}' is of another model ({reason}): resume with the model it was made with"
    )
