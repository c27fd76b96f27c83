"""Attributions of one output to units: integrated gradients, occlusion, gradient x input with Captum; and rollout.

Rows x steps are run as many at a time as `Subject.rows_at_a_time` says, so that memory is bounded whatever the model.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from shoal.explain.attention import attention_rollout
from shoal.explain.columns import patches_of
from shoal.explain.subject import Subject

Method = Literal["integrated_gradients", "occlusion", "input_x_gradient", "attention_rollout"]
# Of tables and images, and of texts.
METHODS: tuple[Method, ...] = ("integrated_gradients", "occlusion", "input_x_gradient")
METHODS_OF_TEXT: tuple[Method, ...] = ("integrated_gradients", "attention_rollout")
STEPS, MOST_STEPS = 50, 800
TOLERANCE = 1e-3  # relative error of completeness
PATCHES = 8  # occluded along the longer side of an image


class Attribution(NamedTuple):
    """What each unit adds to an output.

    Attributes:
        values: float64 [n, units].
        differences: [n], the output of each row less that at the baseline.
        steps: [n], of the integral.
    """

    values: Tensor
    differences: Tensor
    steps: Tensor

    @property
    def errors(self) -> Tensor:
        """How far the sum of attributions is from the difference [n]."""
        return (self.values.sum(dim=1) - self.differences).abs()

    def relative_errors(self) -> Tensor:
        """Return `errors` by the differences [n]; infinite or NaN where there is no difference."""
        return self.errors / self.differences.abs()

    def relative_error(self) -> float:
        """Return the sum of errors by the sum of differences, of all rows together."""
        return float(self.errors.sum() / self.differences.abs().sum())

    def first(self, count: int) -> "Attribution":
        return Attribution(*(part[:count] for part in self))


def attribute(
    subject: Subject, method: Method, inputs: Tensor, targets: Tensor, is_each_complete: bool = False
) -> Attribution:
    """Attribute an output of each row to its units.

    The steps of integrated gradients are doubled, up to `MOST_STEPS`, in rows whose error is above `TOLERANCE`.

    Args:
        inputs: [n, ...] features or token ids.
        targets: [n], which output.
        is_each_complete: go on until every row is complete, instead of all rows together.
    """
    at = targets[:, None]
    differences = (subject.run(inputs).gather(1, at) - subject.at_baseline(inputs).gather(1, at))[:, 0]
    steps = torch.full((len(inputs),), STEPS)
    found = Attribution(attribute_once(subject, method, inputs, targets, STEPS), differences, steps)
    if method != "integrated_gradients":
        return found
    number = STEPS
    while number < MOST_STEPS:
        is_complete = found.relative_errors() <= TOLERANCE
        if bool(is_complete.all()) or (not is_each_complete and found.relative_error() <= TOLERANCE):
            break
        number *= 2
        rows = (~is_complete).nonzero()[:, 0]
        found.values[rows] = attribute_once(subject, method, inputs[rows], targets[rows], number)
        steps[rows] = number
    return found


def attribute_once(subject: Subject, method: Method, inputs: Tensor, targets: Tensor, steps: int) -> Tensor:
    """Return the attributions [n, units] of many rows, some at a time."""
    most = subject.rows_at_a_time
    parts = [
        _BY_NAME[method](subject, some, wanted, steps)
        for some, wanted in zip(inputs.split(most), targets.split(most), strict=True)
    ]
    return torch.cat(parts)


def _integrated_gradients(subject: Subject, inputs: Tensor, targets: Tensor, steps: int) -> Tensor:
    """Integrate gradients from baseline to input (Sundararajan et al. 2017, eq. 1); of tokens at their embedding."""
    from captum.attr import IntegratedGradients, LayerIntegratedGradients

    options = {"target": targets, "n_steps": steps, "internal_batch_size": subject.rows_at_a_time}
    if subject.embedding is None:
        found = IntegratedGradients(subject).attribute(inputs, subject.baseline[None], **options)
        return subject.by_unit(found)
    layer = LayerIntegratedGradients(subject, subject.embedding)
    found = layer.attribute(inputs, subject.baseline[None].expand_as(inputs), **options)
    return subject.by_unit(found.sum(dim=-1))


def _occlusion(subject: Subject, inputs: Tensor, targets: Tensor, steps: int) -> Tensor:
    """Return by how much the output falls when a column, or a patch of an image, is the baseline.

    Captum calls occlusion of features that belong together feature ablation. A patch's pixels share its attribution.
    """
    from captum.attr import FeatureAblation

    shape = subject.baseline.shape
    groups = patches_of(tuple(shape), PATCHES) if subject.kind == "image" else subject.groups
    sizes = torch.bincount(groups)[groups].view(shape)
    with torch.no_grad():
        found = FeatureAblation(subject).attribute(
            inputs,
            subject.baseline[None],
            target=targets,
            feature_mask=groups.view(1, *shape),
            perturbations_per_eval=max(1, subject.rows_at_a_time // len(inputs)),
        )
    return subject.by_unit(found / sizes)


def _input_x_gradient(subject: Subject, inputs: Tensor, targets: Tensor, steps: int) -> Tensor:
    """Return (input - baseline) x gradient at the input, the first term of a Taylor series."""
    from captum.attr import InputXGradient

    method = InputXGradient(lambda moved: subject(subject.baseline + moved))
    return subject.by_unit(method.attribute((inputs - subject.baseline).requires_grad_(), target=targets))


_BY_NAME: dict[Method, Callable[[Subject, Tensor, Tensor, int], Tensor]] = {
    "integrated_gradients": _integrated_gradients,
    "occlusion": _occlusion,
    "input_x_gradient": _input_x_gradient,
    "attention_rollout": lambda subject, inputs, *_: attention_rollout(subject, inputs),
}
