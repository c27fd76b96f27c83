"""What a language model writes, token by token, with the probability of each and of what else it considered.

A causal model continues the beginnings of rows; a masked one fills in the tokens that its task masks in them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from shoal.data.loader import Batch
from shoal.data.tokenizer import END, MASK, PAD, tokenizer_from_json
from shoal.data.tree import only_tensor
from shoal.explain.checks import learned_beside
from shoal.explain.columns import spell
from shoal.inference.predictor import Predictor
from shoal.models.call import call_model
from shoal.storage.records import ExplanationCheck, WrittenText, WrittenToken
from shoal.tasks.language import LanguageModelling
from shoal.tasks.outputs import logits_of

PROMPT, WRITTEN = 32, 32  # tokens of a prompt, the beginning of a row; and that are written after it
ALTERNATIVES = 5
LOGITS_AT_A_TIME = 1 << 24


@dataclass(frozen=True, eq=False)
class Language:
    """What was written for some rows, and whether the model has learnt anything.

    Attributes:
        losses: [n], the mean cross entropy of the predicted tokens of each row.
        is_masked: whether masked tokens were filled in.
    """

    losses: Tensor
    is_masked: bool
    check: ExplanationCheck
    texts: list[WrittenText]


@torch.no_grad()
def token_losses(predictor: Predictor, rows: Tensor) -> tuple[Tensor, float]:
    """Return the mean loss of what is predicted in each row [n] of tokens, and the entropy of how frequent tokens are.

    Args:
        rows: token ids [n, context + 1].
    """
    at_a_time = max(1, LOGITS_AT_A_TIME // (rows.shape[1] * predictor.transform.vocabulary))
    losses, predicted = [], []
    for some in rows.split(at_a_time):
        inputs, targets = _view(predictor, some)
        logits = logits_of(call_model(predictor.model, inputs)).double().transpose(1, 2)
        losses.append(F.cross_entropy(logits, targets, ignore_index=PAD, reduction="none").sum(dim=1))
        predicted.append((targets != PAD).sum(dim=1))
    shares = torch.bincount(rows[rows != PAD]).double()
    shares = shares[shares > 0] / shares.sum()
    means = torch.cat(losses) / torch.cat(predicted).clamp(min=1)
    return means, float(-(shares * shares.log()).sum())


def _view(predictor: Predictor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the model takes of rows [n, context + 1] in evaluation, and what it predicts, PAD where nothing."""
    task = predictor.task
    assert isinstance(task, LanguageModelling)
    batch = task.view(Batch(rows, rows[:, :0], len(rows)), None)
    return only_tensor(batch.inputs), only_tensor(batch.targets)


def write_rows(
    predictor: Predictor, rows: Tensor, losses: Tensor, constant: float, chosen: Mapping[int, str]
) -> Language:
    """Have a model continue the beginnings of rows, or fill in what is masked in them, by its likeliest tokens.

    Args:
        rows: token ids [n, context + 1].
        losses: [n] of them.
        constant: the loss of the frequencies of tokens alone.
        chosen: numbers of rows, and why each is shown.
    """
    tokenizer = predictor.transform.tokenizer
    assert tokenizer is not None
    spelling = tokenizer_from_json(tokenizer).spelling
    is_masked = predictor.task.name == "masked_lm"
    write = _fill_in if is_masked else _continue
    texts = []
    for row, why in chosen.items():
        shown, tokens = write(predictor, rows[row], spelling)
        prompt = "".join(spell(shown.tolist(), spelling))
        texts.append(WrittenText(row=row, why=why, loss=float(losses[row]), prompt=prompt, tokens=tokens))
    return Language(losses, is_masked, learned_beside(float(losses.mean()), constant), texts)


@torch.no_grad()
def _fill_in(
    predictor: Predictor, row: Tensor, spelling: Sequence[bytes]
) -> tuple[Tensor, list[WrittenToken]]:
    """Return a row as a masked model takes it, and the likeliest tokens at the first places that are predicted."""
    inputs, targets = _view(predictor, row[None])
    (places,) = (targets[0] != PAD).nonzero(as_tuple=True)
    logits = logits_of(call_model(predictor.model, inputs))[0]
    shown = torch.where(targets[0] != PAD, MASK, inputs[0])
    return shown[shown != PAD], [_likeliest(logits[place], spelling)[1] for place in places[:WRITTEN]]


@torch.no_grad()
def _continue(
    predictor: Predictor, row: Tensor, spelling: Sequence[bytes]
) -> tuple[Tensor, list[WrittenToken]]:
    """Return the beginning of a row, and the likeliest tokens after it, up to the end of the document."""
    context = predictor.transform.input_shape[0]
    prompt = tokens = row[row != PAD][: min(PROMPT, max(1, context // 2))]
    written: list[WrittenToken] = []
    while len(written) < WRITTEN:
        logits = logits_of(call_model(predictor.model, tokens[None, -context:]))[0, -1]
        best, token = _likeliest(logits, spelling)
        written.append(token)
        tokens = torch.cat([tokens, best[None]])
        if int(best) == END:
            break
    return prompt, written


def _likeliest(logits: Tensor, spelling: Sequence[bytes]) -> tuple[Tensor, WrittenToken]:
    """Return the likeliest token of logits [vocabulary], and it with its probability and the next ones."""
    probabilities, ids = logits.double().softmax(dim=0).topk(min(1 + ALTERNATIVES, len(logits)))
    names, values = spell(ids.tolist(), spelling), probabilities.tolist()
    others = dict(zip(names[1:], values[1:], strict=True))
    return ids[0], WrittenToken(token=names[0], probability=values[0], alternatives=others)
