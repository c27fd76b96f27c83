"""A user's own callbacks: functions and objects that are called at named moments of a training.

They run on every worker. Random states are as they were after each call, and so are the model's mode and its
gradients, so that no callback moves the order of the data or what a resumed run does. It knows the moments and what a
callback sees; it does not know what a step is.
"""

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import nn

from shoal.config.import_path import find_object, is_path, missing_colon
from shoal.devices import place_of_sums
from shoal.distributed.process_group import Collective
from shoal.errors import UserError, nearest
from shoal.training.checkpoint.contents import TrainingProgress, random_state, set_random_state
from shoal.training.checkpoint.plain import REMEDY, why_not_plain
from shoal.training.clock import Clock

MOMENTS = ("on_train_begin", "on_step_end", "on_epoch_end", "on_evaluate_end", "on_train_end")
KEY = "train.callbacks"
# What Shoal itself logs.
OWN_METRICS = ("train/", "val/", "test/", "best/", "perf/", "system/")

Log = Callable[[int, dict[str, float]], None]


@dataclass(frozen=True)
class Context:
    """What a callback sees of a training.

    Attributes:
        step: optimizer steps made so far.
        epoch: of the last step, from 0.
        samples: rows trained on so far, over all workers.
        model: this worker's; the trained weights, also where an average of them is kept.
        optimizer: of the model.
        metrics: of the last evaluation, e.g. {"val/loss": 0.3}; empty before the first.
    """

    step: int
    epoch: int
    samples: int
    model: nn.Module
    optimizer: torch.optim.Optimizer
    metrics: Mapping[str, float]
    _log: Callable[[str, Any], None] = field(repr=False)
    _stop: Callable[[], None] = field(repr=False)

    def log(self, name: str, value: float) -> None:
        """Log a metric at this step; what worker 0 logs is kept.

        Raises:
            ValueError: Shoal logs metrics under such a name itself, or the value is no number.
        """
        self._log(name, value)

    def stop(self) -> None:
        """End training after this step, once it is evaluated; one worker that asks for it ends it for all."""
        self._stop()


class Trained(Protocol):
    """The part of a training loop that callbacks see."""

    @property
    def model(self) -> nn.Module: ...

    @property
    def forward(self) -> nn.Module: ...

    @property
    def optimizer(self) -> torch.optim.Optimizer: ...

    @property
    def collective(self) -> Collective: ...


class UserCallbacks:
    """The callbacks of one training by their path, in the order of the config."""

    def __init__(self, paths: Sequence[str] = ()) -> None:
        """Import the callbacks and make an object of each class.

        Raises:
            UserError: one does not import, cannot be made, or has none of the moments.
        """
        self._objects = {path: _make(path) for path in paths}

    def has(self, moment: str) -> bool:
        return any(hasattr(found, moment) for found in self._objects.values())

    def call(self, moment: str, context: Context, *args: Any) -> None:
        """Call all that have a moment.

        Raises:
            UserError: one of them raised.
        """
        for path, found in self._objects.items():
            if hasattr(found, moment):
                with _users_error(path, f"{moment}() at step {context.step}"):
                    getattr(found, moment)(context, *args)

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the state of those that have one, by path.

        Raises:
            UserError: a checkpoint cannot hold it.
        """
        states = {}
        for path, found in self._objects.items():
            if hasattr(found, "state_dict"):
                with _users_error(path, "state_dict()"):
                    states[path] = copy.deepcopy(found.state_dict())
                if problem := why_not_plain(states[path]):
                    raise UserError(f"{KEY}: of the state_dict() of '{path}', {problem}: {REMEDY}")
        return states

    def load_state_dict(self, states: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; one without a state begins anew.

        Raises:
            UserError: a callback refuses its state.
        """
        for path, state in states.items():
            if hasattr(self._objects.get(path), "load_state_dict"):
                with _users_error(path, "load_state_dict()"):
                    self._objects[path].load_state_dict(state)


class Moments:
    """The moments of one training, at which its callbacks are called."""

    def __init__(
        self,
        callbacks: UserCallbacks,
        loop: Trained,
        progress: TrainingProgress,
        steps_per_epoch: int,
        log: Log,
        clock: Clock,
    ) -> None:
        self._callbacks, self._loop, self._progress = callbacks, loop, progress
        self._steps_per_epoch, self._log_metrics, self._clock = steps_per_epoch, log, clock
        self._is_stop_asked = False

    def has(self, moment: str) -> bool:
        return self._callbacks.has(moment)

    def __call__(self, moment: str, *args: Any) -> bool:
        """Call the callbacks; return whether training ends, which all workers agree on.

        Raises:
            UserError: a callback raised.
        """
        if self._callbacks.has(moment):
            with self._clock.on(moment):
                self._call(moment, *args)
        return self._progress.has_ended

    def _call(self, moment: str, *args: Any) -> None:
        progress, loop, random = self._progress, self._loop, random_state()
        epoch = max(0, progress.step - 1) // self._steps_per_epoch
        context = Context(
            progress.step, epoch, progress.samples, loop.model, loop.optimizer, dict(progress.metrics),
            self._log, self._ask_to_stop,
        )  # fmt: skip
        self._callbacks.call(moment, context, *args)
        set_random_state(random)
        if not loop.model.training:
            loop.forward.train()
        for group in loop.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        if progress.step and self._any_asks():
            progress.ended_by = progress.ended_by or "callback"

    def _any_asks(self) -> bool:
        collective = self._loop.collective
        if collective.size == 1:
            return self._is_stop_asked
        device = next((parameter.device for parameter in self._loop.model.parameters()), None)
        place = device and place_of_sums(device)
        asks = torch.tensor([float(self._is_stop_asked)], dtype=torch.float64, device=place)
        return collective.all_reduce(asks).item() > 0

    def _ask_to_stop(self) -> None:
        self._is_stop_asked = True

    def _log(self, name: str, value: Any) -> None:
        if not isinstance(name, str) or name.startswith(OWN_METRICS):
            raise ValueError(
                f"log({name!r}, ...): names that begin with {', '.join(OWN_METRICS)} are Shoal's own: take another"
            )
        self._log_metrics(self._progress.step, {name: float(value)})


def check_callbacks(paths: Sequence[str]) -> None:
    """Check callbacks before anything starts, without making an object of any class.

    Raises:
        UserError: one does not import, is named twice, has none of the moments, or cannot be made without arguments.
    """
    for number, path in enumerate(paths):
        if not is_path(path):
            raise UserError(
                f"{KEY} names '{path}', which is no package.module:name{missing_colon(path)}: name a class, an object "
                "or a function of your own"
            )
        if path in paths[:number]:
            raise UserError(
                f"{KEY} names '{path}' twice: a callback's state is kept by its name; leave one out"
            )
        found = find_object(path, KEY)
        if inspect.isroutine(found):
            continue
        unknown = [name for name in dir(found) if name.startswith("on_") and name not in MOMENTS]
        if unknown:
            raise UserError(
                f"{KEY}: '{path}' has '{unknown[0]}', which is no moment{nearest(unknown[0], MOMENTS)}: a callback has "
                f"some of {', '.join(MOMENTS)}"
            )
        if not any(hasattr(found, moment) for moment in MOMENTS) and (
            isinstance(found, type) or not callable(found)
        ):
            raise UserError(
                f"{KEY}: '{path}' has none of {', '.join(MOMENTS)}: give it one of these methods, or name a function "
                "of (context, metrics), which is called after each evaluation"
            )
        if isinstance(found, type) and (needed := _needed(found)):
            raise UserError(
                f"{KEY}: '{path}' needs {', '.join(needed)}, and is made without arguments: give them defaults, or "
                "name an object of the class that the module holds"
            )


def _make(path: str) -> Any:
    """Return a callback as an object that has moments; an object of a module is copied, since others may use it."""
    found = find_object(path, KEY)
    has_moments = any(hasattr(found, moment) for moment in MOMENTS)
    if not (has_moments or isinstance(found, type)):
        return _Function(found)
    with _users_error(path, "making it"):
        return found() if isinstance(found, type) else copy.deepcopy(found)


class _Function:
    """A plain function, called after each evaluation."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    def on_evaluate_end(self, context: Context, metrics: Mapping[str, float]) -> None:
        self._function(context, metrics)


@contextlib.contextmanager
def _users_error(path: str, doing: str) -> Iterator[None]:
    """Name the callback and the moment of what it raises."""
    try:
        yield
    except Exception as error:
        raise UserError(
            f"{KEY}: '{path}' raised {type(error).__name__} in {doing}: {error}: fix it, or leave it out"
        ) from error


def _needed(kind: type) -> list[str]:
    try:
        parameters = inspect.signature(kind).parameters.values()
    except ValueError:  # of a class written in C
        return []
    return [
        p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
