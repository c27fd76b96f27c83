"""Whether two models answer by the same parts of their inputs: the rank correlation of their attributions."""

import numpy as np
import torch
from torch import Tensor

from shoal.data.sources.base import Block
from shoal.data.tokenizer import PAD
from shoal.explain.checks import rank_correlations
from shoal.explain.subject import embedding_of
from shoal.inference.predictor import Predictor
from shoal.models.call import call_model
from shoal.tasks.custom import Custom
from shoal.tasks.outputs import logits_of


def attribution_agreement(original: Predictor, variant: Predictor, block: Block) -> float | None:
    """Return Spearman's rank correlation of two models' attributions of rows, the mean over the rows.

    An attribution is gradient x input (Shrikumar et al. 2016, "Not Just a Black Box") of what the original predicts:
    of the logarithms of the probabilities of its class or tokens (logits may differ by what is common to all classes,
    which no answer depends on), or of its numbers. Of tokens those count that both predict: why a model would say what
    it does not say is no reason for an answer. Units are features, pixels or tokens.

    Returns:
        None where inputs have no gradient (several arrays, whole numbers that no embedding takes), or outputs have
        no known meaning, or attributions are all alike.
    """
    inputs = original.inputs(block)
    if not isinstance(inputs, Tensor) or original.task.name == Custom.name:
        return None
    with torch.no_grad():
        outputs, others = (logits_of(call_model(one.model, inputs)) for one in (original, variant))
    is_of_classes = bool(original.transform.label.classes) or original.transform.tokenizer is not None
    chosen = outputs.argmax(dim=-1, keepdim=True) if is_of_classes else None
    is_counted = torch.ones_like(outputs[..., :1])
    if chosen is not None and outputs.ndim > 2:
        is_counted = (others.argmax(dim=-1, keepdim=True) == chosen).float()
    maps = [_attributions(one, inputs, chosen, is_counted) for one in (original, variant)]
    if maps[0] is None or maps[1] is None:
        return None
    found = rank_correlations(maps[0], maps[1])
    return None if np.isnan(found).all() else float(np.nanmean(found))


def _attributions(
    predictor: Predictor, inputs: Tensor, chosen: Tensor | None, is_counted: Tensor
) -> np.ndarray | None:
    """Return gradient x input [n, units], NaN at padding, of chosen outputs; None: of all.

    Args:
        is_counted: [n, ..., 1], 1 of the outputs that are attributed, and 0.
    """
    model, embedded = predictor.model, []
    handles = []
    if inputs.is_floating_point():
        inputs = inputs.clone().requires_grad_()
        embedded.append(inputs)
    elif (embedding := embedding_of(model, predictor.transform)) is not None:
        handles.append(embedding.register_forward_hook(lambda *parts: embedded.append(parts[-1])))
    try:
        with torch.enable_grad():
            outputs = logits_of(call_model(model, inputs))
            wanted = outputs if chosen is None else outputs.log_softmax(dim=-1).gather(-1, chosen)
            total = (wanted * is_counted).sum()
            [gradient] = torch.autograd.grad(total, embedded[:1], allow_unused=True) if embedded else [None]
    finally:
        for handle in handles:
            handle.remove()
    if gradient is None:
        return None
    found = (gradient * embedded[0]).detach().double()
    if handles:
        found = torch.where(inputs == PAD, torch.nan, found.sum(dim=-1))
    elif found.ndim > 2:
        found = found.sum(dim=1)  # of an image's channels
    return found.flatten(1).numpy()
