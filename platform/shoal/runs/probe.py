"""What would fail after the first step or at the end, found before anything is started: on a few real rows.

A model that is thrown away afterwards does all that a run does once: evaluation, loss, backward, an optimizer step,
prediction from raw rows, and its weights loaded into another. It knows a run's config and data; it starts nothing.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from shoal.config.import_path import is_path
from shoal.data.dataset_info import DatasetInfo, blocks_with_splits
from shoal.data.loader import Batch
from shoal.data.preprocessing_spec import PreprocessingSpec
from shoal.data.random_state import seeded
from shoal.data.sampler import SPLITS, TRAIN
from shoal.data.sources.base import Block, Source
from shoal.data.tree import Tree, are_equal, are_finite, clone, describe, row_count, select_rows
from shoal.errors import DataError, ModelError, UserError
from shoal.inference.predictor import Predictor
from shoal.inference.rows import as_block, as_rows, check_names
from shoal.models.call import call_model
from shoal.models.inputs import view_of_rows
from shoal.models.registry import build_model_for
from shoal.models.size import ModelSize, measure_size
from shoal.runs.config import RunConfig
from shoal.runs.probe_objective import check_compared, check_losses, check_objective
from shoal.runs.row_counts import check_row_counts
from shoal.tasks.outputs import logits_of
from shoal.tasks.registry import make_task
from shoal.training.mixed_precision import Precision, autocast
from shoal.training.optimizer import build_optimizer
from shoal.training.optimizer_state import check_state

MOST_ROWS = 8
MOST_NUMBERS = 1 << 16  # of the rows' inputs, but two rows at least: normalization over a batch needs them
MOST_FLOPS = 1 << 26  # of a row's forward pass: of a larger model two rows do
# Of a model's weights: with more, this process makes no backward and no second model, for their time and memory.
MOST_BYTES = 256 << 20
SAME = {"rtol": 1e-4, "atol": 1e-5}  # outputs of one model for the same rows


def training_rows(source: Source, preprocessing: PreprocessingSpec) -> Block:
    """Return the first few training rows of a source, as they are; only the blocks up to them are read."""
    for block, split in blocks_with_splits(source, preprocessing):
        found = np.flatnonzero(split == SPLITS.index(TRAIN))[:MOST_ROWS]
        if len(found):
            return {name: column[found] for name, column in block.items()}
    raise AssertionError("the data was checked to hold training rows")


def probe(
    config: RunConfig,
    info: DatasetInfo,
    preprocessing: PreprocessingSpec,
    block: Block,
    model: nn.Module,
    compared: Sequence[tuple[str, str]] = (),
) -> ModelSize:
    """Do with a model, once, all that a run will do; return its size.

    Args:
        block: some raw training rows.
        model: which is changed.
        compared: metrics that must be measured besides those of the config, each with the key that names it.

    Raises:
        UserError: the first rule that is broken.
    """
    check_names(info.transform)
    _check_one_optimizer(config.model.name, model)
    found = _Probe(config, info, preprocessing, block, model)
    with seeded(config.seed):
        size = found.size()
        found.evaluates(compared)
        found.predicts()
        if size.bytes <= MOST_BYTES:
            found.is_built_again()
        found.trains(size.bytes <= MOST_BYTES)
    return size


def _check_one_optimizer(name: str, model: nn.Module) -> None:
    """Refuse a model in the form of Lightning's that is trained by several optimizers in turn.

    Raises:
        ModelError: its `configure_optimizers` returns several.
    """
    configure = getattr(model, "configure_optimizers", None)
    try:
        made = configure() if callable(configure) else None
    except Exception:  # it needs a trainer, which there is none of here
        made = None
    optimizers = made[0] if isinstance(made, tuple) and made and isinstance(made[0], list) else made
    count = len(optimizers) if isinstance(optimizers, list | tuple) else 1
    if count > 1:
        raise ModelError(
            f"model.name='{name}' has configure_optimizers, which returns {count} optimizers: a run has one optimizer, "
            "of optim.name, and one loss; where two parts are trained against each other, reverse the gradient between "
            "them (Ganin and Lempitsky, 2015) in one loss, or train the parts in runs of their own with model.freeze "
            "and model.init, and drop configure_optimizers"
        )


def _check_collate(path: str, first: Batch, second: Batch) -> None:
    """Refuse a collate function that returns other tensors for the same samples.

    Raises:
        DataError: it does.
    """
    for part in ("inputs", "targets"):
        if not are_equal(getattr(first, part), getattr(second, part)):
            raise DataError(
                f"data.collate='{path}' returned other {part} when it was called again with the same samples: a run "
                "that is resumed, or has more workers, would train on other data; draw random numbers in the model's "
                "forward if self.training"
            )


class _Probe:
    """A model and rows in each form that it will meet them in."""

    def __init__(
        self,
        config: RunConfig,
        info: DatasetInfo,
        preprocessing: PreprocessingSpec,
        block: Block,
        model: nn.Module,
    ) -> None:
        transform = info.transform
        most = max(2, MOST_NUMBERS // max(1, int(np.prod(transform.input_shape))))
        self._config, self._info, self._preprocessing, self._model = config, info, preprocessing, model
        self._block = {name: column[:most] for name, column in block.items()}
        self._task = make_task(config.task, transform, config.data, config.seed, config.train)
        inputs, targets = (
            torch.from_numpy(array)
            for array in (transform.stored(self._block), transform.targets(self._block))
        )
        as_taken, stored = view_of_rows(transform, model), Batch(inputs, targets, count=len(inputs))
        batch = as_taken(stored, None)
        if config.data.collate is not None:
            _check_collate(config.data.collate, batch, as_taken(stored, None))
        view = self._task.view or (lambda batch, epoch: batch)
        self._trained, self._held_out = view(batch, 0), view(batch, None)
        self._name = f"model.name='{config.model.name}'"

    def size(self) -> ModelSize:
        """Measure the model; a large one sees two rows from here on."""
        size = measure_size(self._model, clone(_first(self._held_out, 1).inputs))
        if size.flops_per_sample > MOST_FLOPS:
            self._trained, self._held_out = _first(self._trained, 2), _first(self._held_out, 2)
        return size

    def evaluates(self, compared: Sequence[tuple[str, str]]) -> None:
        """Evaluate the rows twice, and one of them alone."""
        batch, one = self._held_out, _first(self._held_out, 1)
        self._model.eval()
        with torch.no_grad():
            outputs = self._outputs(batch, "evaluating")
            for rows, found in ((batch, outputs), (one, self._outputs(one, "evaluating"))):
                check_losses(self._task, found, rows)
            before = torch.get_rng_state()
            again = self._outputs(batch, "evaluating")
            for first, second in zip(_tensors(outputs), _tensors(again), strict=True):
                if not torch.allclose(first, second, equal_nan=True, **SAME):  # type: ignore[arg-type]
                    draws = not torch.equal(before, torch.get_rng_state())
                    self._refuse_other_outputs(float((first - second).abs().max()), draws)
            parts = [one, _rows(batch, slice(1, None))] if row_count(batch.inputs) > 1 else [one]
            names = check_objective(self._task, lambda rows: self._outputs(rows, "evaluating"), batch, parts)
            check_compared(self._config, names, compared)

    def predicts(self) -> None:
        """Predict from raw rows, as the saved model will."""
        predictor = Predictor(self._model, self._info.transform, self._task, self._preprocessing)
        params = predictor.params | ({"max_new_tokens": 1} if predictor.params else {})
        with self._guarded(self._held_out, "predicting from"):
            rows = as_rows(_head(self._block, 2), self._info.transform)
            predictor.answers(as_block(rows, self._info.transform), params)

    def is_built_again(self) -> None:
        """Load the weights into another model, as evaluation and prediction will."""
        state = self._model.state_dict()
        odd = next((name for name, value in state.items() if not isinstance(value, Tensor)), None)
        if odd is not None:
            raise ModelError(
                f"{self._name}: '{odd}' of its state_dict is a {type(state[odd]).__name__}: a saved model holds "
                "tensors alone; leave out get_extra_state, or register a buffer"
            )
        if not is_path(self._config.model.name):
            return
        config = self._config
        other = build_model_for(config.model, self._info.transform, config.task, config.seed)
        try:
            other.load_state_dict(state)
        except RuntimeError as error:
            raise ModelError(
                f"{self._name} built another model the second time ({_one_line(error)}): a builder returns the same "
                "layers for the same arguments"
            ) from None

    def trains(self, makes_step: bool) -> None:
        """Make a step of the optimizer, or as much of it as this process can afford."""
        model, batch = self._model.train(), self._trained
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not trained:
            raise ModelError(
                f"{self._name} has no parameter to train: all {len(list(model.parameters()))} have "
                "requires_grad=False; leave it True for those that are learnt, or name fewer in model.freeze"
            )
        optimizer = build_optimizer(model, self._config.optim)
        check_row_counts(self._config, self._info.rows[TRAIN], model, self._takes_one_row)
        loss = self._loss(batch)
        if not torch.isfinite(loss):
            raise ModelError(f"{self._name}: {self._why_not_finite(loss.item())}")
        if not loss.requires_grad:
            raise ModelError(
                f"{self._name}: the loss depends on none of its {len(trained)} parameters: its outputs were detached, "
                "or computed under torch.no_grad or through .item() or NumPy"
            )
        if not makes_step:
            return
        if "fsdp" in self._config.scale.strategy:
            self._uses_the_same(trained)
        with self._guarded(batch, "in the backward pass of"):
            loss.backward()  # type: ignore[no-untyped-call]
        if all(parameter.grad is None for parameter in trained.values()):
            raise ModelError(
                f"{self._name}: none of its {len(trained)} parameters gets a gradient from the loss"
            )
        with self._guarded(batch, f"in the {self._config.optim.name} step of"):
            optimizer.step()
        if is_path(self._config.optim.name):
            check_state(optimizer, build_optimizer(model, self._config.optim), self._config.optim.name)

    def _loss(self, batch: Batch) -> Tensor:
        """Return the loss of rows in training, computed as precisely as this process can."""
        precision: Precision = "bf16" if self._config.train.precision == "bf16" else "fp32"
        with autocast(precision, "cpu"):
            outputs = self._outputs(batch, "training on")
        check_losses(self._task, outputs, batch)
        return self._task.loss(outputs, batch) / row_count(batch.inputs)

    def _outputs(self, batch: Batch, doing: str) -> Any:
        """Return a forward pass's outputs; the model receives a copy of the rows, on which it may write."""
        with self._guarded(batch, doing):
            outputs: object = call_model(self._model, clone(batch.inputs))
        if self._task.own_loss is not None:
            return outputs
        try:
            logits = logits_of(outputs)
        except ModelError as error:
            raise ModelError(f"{self._name}: {error}") from None
        if not logits.is_floating_point():
            raise ModelError(
                f"{self._name} returned numbers of type {str(logits.dtype).removeprefix('torch.')}: outputs are "
                "floating-point numbers (logits, or values), not classes"
            )
        return outputs

    def _takes_one_row(self) -> str | None:
        """Return why the model cannot train on one row at a time, or None."""
        try:
            self._loss(_first(self._trained, 1))
        except ModelError as error:
            return str(error.__cause__ or error)
        return None

    def _uses_the_same(self, trained: Mapping[str, nn.Parameter]) -> None:
        """Refuse a layer that is used for some rows alone where workers gather layers together."""
        uses: set[str] | None = None
        for row in range(row_count(self._trained.inputs)):
            self._model.zero_grad()
            self._loss(_rows(self._trained, slice(row, row + 1))).backward()  # type: ignore[no-untyped-call]
            found = {name for name, parameter in trained.items() if parameter.grad is not None}
            if uses is not None and found != uses:
                raise ModelError(
                    f"parameter '{min(found ^ uses)}' of {self._name} is used for some rows alone: with scale.strategy="
                    f"{self._config.scale.strategy} all workers need each layer in each step; use it for every row "
                    "(times zero), or set scale.strategy=ddp"
                )
            uses = found
        self._model.zero_grad()

    def _why_not_finite(self, loss: float) -> str:
        rows = self._trained.inputs
        if not are_finite(rows):
            return (
                f"the loss is {loss} before the first step, and its inputs hold inf or nan: drop these values"
            )
        return (
            f"the loss is {loss} before the first step, of {row_count(rows)} rows whose inputs are finite: look for a "
            "division by zero, a logarithm, or weights that were never set in its forward"
        )

    def _refuse_other_outputs(self, difference: float, draws: bool) -> None:
        where = _first_that_differs(self._model, self._held_out.inputs)
        reason = (
            "it draws random numbers in eval mode: write nn.Dropout, or F.dropout(x, p, training=self.training)"
            if draws
            else "a forward in eval mode must not change what the next one returns: keep no state there"
        )
        raise ModelError(
            f"{self._name} returns other outputs for the same rows when it is evaluated again, by up to "
            f"{difference:.3g} ({where}): {reason}"
        )

    @contextmanager
    def _guarded(self, batch: Batch, doing: str) -> Iterator[None]:
        """Name what the model got, and what it raised."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            raise ModelError(
                f"{self._name} raised {type(error).__name__} when {doing} rows of {describe(batch.inputs)}: "
                f"{_one_line(error)}: its builder receives `inputs` and `outputs` if its signature names them"
            ) from error


def _first_that_differs(model: nn.Module, inputs: Tree) -> str:
    """Name the innermost module whose outputs, of equal inputs, differ between two passes over the same rows."""
    passes: list[list[tuple[str, Any, Any]]] = []
    names = {module: name for name, module in model.named_modules()}

    def note(module: nn.Module, given: tuple[Any, ...], outputs: Any) -> None:
        passes[-1].append((names[module], given[0] if given else None, outputs))

    hooks = [module.register_forward_hook(note) for module in names]
    with torch.no_grad():
        for _ in range(2):
            passes.append([])
            call_model(model, clone(inputs))
    for hook in hooks:
        hook.remove()
    where = ""
    for (name, given, one), (_, given_again, other) in zip(*passes, strict=False):
        if isinstance(one, Tensor) and not torch.equal(one, other):
            has_equal_inputs = not isinstance(given, Tensor) or torch.equal(given, given_again)
            where = name if has_equal_inputs else name.rpartition(".")[0]
            break
    kind = type(model.get_submodule(where)).__name__
    return f"in the forward of {kind}" + (f", module '{where}'" if where else "")


def _tensors(outputs: Any) -> Iterator[Tensor]:
    """Yield the tensors of what a model returned."""
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, Mapping | tuple | list):
        for inner in outputs.values() if isinstance(outputs, Mapping) else outputs:
            yield from _tensors(inner)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _head(block: Block, rows: int) -> Block:
    return {name: column[:rows] for name, column in block.items()}


def _first(batch: Batch, rows: int) -> Batch:
    return _rows(batch, slice(0, rows))


def _rows(batch: Batch, rows: slice) -> Batch:
    inputs, targets = select_rows(batch.inputs, rows), select_rows(batch.targets, rows)
    weights = None if batch.weights is None else batch.weights[rows]
    return Batch(inputs, targets, count=row_count(inputs), weights=weights)
