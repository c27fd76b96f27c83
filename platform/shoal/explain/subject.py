"""What is explained: a model as a function of its features, what the features belong to, and the baseline."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from shoal.data.preprocessing import Transform
from shoal.data.tokenizer import PAD
from shoal.data.tree import Tree, select_rows
from shoal.errors import ModelError
from shoal.explain.answers import Answers, answers_of
from shoal.explain.columns import columns_of, pixels_of
from shoal.inference.predictor import Predictor
from shoal.models.call import call_model
from shoal.tasks.custom import Custom
from shoal.tasks.libraries import Library
from shoal.tasks.multilabel_classification import MultilabelClassification

Kind = Literal["table", "image", "text"]
PACKAGE = Library("captum.attr", "explain")
LABELS, OWN = MultilabelClassification.name, Custom.name
TASKS = ("classification", "image_classification", "regression", "sequence_classification", LABELS, OWN)
LANGUAGE = ("causal_lm", "masked_lm")
MEMORY_BYTES = 128 << 20  # that activations of the rows run at a time may hold
MOST_AT_A_TIME = 4096


@dataclass(frozen=True, eq=False)
class Subject:
    """A model and what its inputs are.

    Attributes:
        model: its weights take no gradients.
        answers: what the outputs are.
        units: names of the columns, pixels or places of tokens.
        groups: [features], the unit of each feature of a row.
        baseline: [*shape of a row], what a feature is that is not there.
        embedding: of tokens, which have no gradients themselves; None: the inputs are numbers.
    """

    kind: Kind
    model: nn.Module
    answers: Answers
    units: tuple[str, ...]
    groups: Tensor
    baseline: Tensor
    embedding: nn.Module | None = None

    def __call__(self, inputs: Tensor) -> Tensor:
        """Map rows [n, ...] to what is explained [n, outputs]: logits, or numbers."""
        return self.answers.outputs(call_model(self.model, inputs))

    @cached_property
    def rows_at_a_time(self) -> int:
        """How many rows keep their activations for backward within `MEMORY_BYTES`."""
        rows = self.baseline.expand(2, *self.baseline.shape)
        per_row = max(1, self._held_bytes(rows) - self._held_bytes(rows[:1]))
        return max(1, min(MOST_AT_A_TIME, MEMORY_BYTES // per_row))

    def _held_bytes(self, inputs: Tensor) -> int:
        """Return the bytes that a forward pass keeps for backward, the weights among them."""
        held: list[int] = [inputs.nbytes]

        def pack(tensor: Tensor) -> Tensor:
            held.append(tensor.nbytes)
            return tensor

        inputs = inputs.clone()
        with saved_tensors_hooks(pack, lambda tensor: tensor), torch.enable_grad():
            if self.embedding is None:
                self(inputs.requires_grad_())
            else:
                with self._embedded(self.embedding(inputs).requires_grad_()):
                    self(inputs)
        return sum(held)

    @torch.no_grad()
    def run(self, inputs: Tensor) -> Tensor:
        """Return the outputs of many rows, float64, without gradients."""
        return torch.cat([self(some) for some in inputs.split(self.rows_at_a_time)]).double()

    @torch.no_grad()
    def losses(self, inputs: Tensor, labels: Tree) -> Tensor:
        """Return the loss of each of many rows [n], float64."""
        found = []
        for start in range(0, len(inputs), self.rows_at_a_time):
            rows = slice(start, start + self.rows_at_a_time)
            returned = call_model(self.model, inputs[rows])
            found.append(self.answers.losses(returned, select_rows(labels, rows), inputs[rows]))
        return torch.cat(found)

    @torch.no_grad()
    def at_baseline(self, inputs: Tensor) -> Tensor:
        """Return the outputs [n, outputs] where every feature of the rows is the baseline."""
        if self.embedding is None:
            return self.run(self.baseline[None]).expand(len(inputs), -1)
        # Only the embeddings change: which positions hold tokens, and are attended to, stays as it is in the row.
        blank = self.embedding(self.baseline)
        found = []
        for some in inputs.split(self.rows_at_a_time):
            with self._embedded(blank.expand(len(some), *blank.shape)):
                found.append(self(some))
        return torch.cat(found).double()

    @contextmanager
    def _embedded(self, embedded: Tensor) -> Iterator[None]:
        """Have the embedding return other vectors."""
        assert self.embedding is not None
        handle = self.embedding.register_forward_hook(lambda *_: embedded)
        try:
            yield
        finally:
            handle.remove()

    def by_unit(self, attributions: Tensor) -> Tensor:
        """Sum attributions [n, ...] of features to [n, units]."""
        flat = attributions.detach().double().flatten(1)
        return torch.zeros(len(flat), len(self.units), dtype=torch.float64).index_add_(1, self.groups, flat)

    def is_there(self, inputs: Tensor) -> Tensor:
        """Return which units [n, units] a row has: all but the padding of a text."""
        if self.kind == "text":
            return inputs != PAD
        return torch.ones(len(inputs), len(self.units), dtype=torch.bool)

    def without(self, inputs: Tensor, is_left_out: Tensor) -> Tensor:
        """Return rows of which some units [n, units] are the baseline."""
        mask = is_left_out[:, self.groups].view(inputs.shape)
        return torch.where(mask, self.baseline, inputs)

    def with_redrawn_weights(self, seed: int) -> "Subject":
        """Return the same architecture with other weights: normal with the mean square of each tensor of the trained.

        Norms keep theirs, whose scale would change that of everything else. Initial distributions are not drawn from:
        layers that begin as zero would leave nothing to compare with.
        """
        model = copy.deepcopy(self.model).requires_grad_(False)
        draw = torch.Generator().manual_seed(seed)
        seen: set[int] = set()
        for module in model.modules():
            if "norm" in type(module).__name__.lower():
                seen |= {id(parameter) for parameter in module.parameters(recurse=False)}
            for parameter in module.parameters(recurse=False):
                if id(parameter) not in seen and parameter.is_floating_point():
                    seen.add(id(parameter))
                    root = float(parameter.double().square().mean().sqrt())
                    parameter.normal_(0.0, root, generator=draw)
        embedding = None
        if self.embedding is not None:
            embedding = dict(model.named_modules())[_name_of(self.embedding, self.model)]
        return replace(self, model=model, embedding=embedding)


def check_installed() -> None:
    """Refuse a Python without Captum.

    Raises:
        ConfigError: with the command that installs it.
    """
    PACKAGE.check("explaining a model")


def writes_text(predictor: Predictor) -> bool:
    """Whether a model is shown by the tokens that it writes (`shoal.explain.language`)."""
    return predictor.task.name in LANGUAGE


def make_subject(predictor: Predictor, rows: Tensor) -> Subject:
    """Return what is to be explained of a model.

    Args:
        rows: [n, ...] features, whose mean is the baseline: a category counts by the share of each of its values.

    Raises:
        ModelError: as `check_kind`, a user's own model of text has no embedding, or their loss may not be run.
    """
    transform = predictor.transform
    model = copy.deepcopy(predictor.model).requires_grad_(False).eval()
    answers = answers_of(predictor, rows)
    if transform.tokenizer is not None:
        places = transform.input_shape[0]
        names = tuple(f"token {place}" for place in range(places))
        blank = torch.full((places,), PAD)
        embedding = embedding_of(model, transform)
        if embedding is None:
            raise ModelError(
                f"the model has no torch.nn.Embedding of the {transform.vocabulary} token ids, whose vectors a text is "
                "explained by: embed the tokens with one"
            )
        return Subject("text", model, answers, names, torch.arange(places), blank, embedding)
    if not rows.is_floating_point():
        raise ModelError(
            "the model takes whole numbers, which have no gradients: models of decimal numbers, categories, images "
            "and tokens of text are explained"
        )
    baseline = rows.double().mean(dim=0).float()
    if len(transform.input_shape) == 1:
        return Subject("table", model, answers, *columns_of(transform), baseline)
    return Subject("image", model, answers, *pixels_of(transform.input_shape), baseline)


def check_kind(predictor: Predictor) -> None:
    """Refuse a model of which no output is attributed to columns, pixels or tokens.

    Raises:
        ModelError: with the task, or what the model takes.
    """
    transform, task = predictor.transform, predictor.task.name
    if writes_text(predictor):
        return
    if task not in TASKS:
        known = ", ".join((*TASKS, *LANGUAGE))
        raise ModelError(f"a model of task={task} is not explained: only those of {known} are")
    if transform.target_columns and task not in (LABELS, OWN):
        raise ModelError(
            "a model that predicts several labels is not explained: train one model for each label"
        )
    if transform.collate is not None or transform.input_tree is not None:
        raise ModelError(
            f"a model that takes {transform.described_inputs if transform.input_tree else 'what data.collate makes'} "
            "is not explained: only those of one array of one shape are"
        )
    if len(transform.input_shape) > 3:
        raise ModelError(
            f"a model of arrays {list(transform.input_shape)} is not explained: only up to 3 dimensions are"
        )


def embedding_of(model: nn.Module, transform: Transform) -> nn.Embedding | None:
    """Return the layer that embeds token ids; None: the model has none of the whole vocabulary."""
    layers = (one for one in model.modules() if isinstance(one, nn.Embedding))
    return next((one for one in layers if one.num_embeddings == transform.vocabulary), None)


def _name_of(wanted: nn.Module, model: nn.Module) -> str:
    return next(  # type: ignore[no-any-return]
        name for name, module in model.named_modules() if module is wanted
    )
