"""What a causal language model writes, token by token, with the probability of each and of what else it considered."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shoal.data.tokenizer import END, PAD, tokenizer_from_json
from shoal.explain.checks import learned_beside
from shoal.explain.columns import spell
from shoal.inference.predictor import Predictor
from shoal.models.call import call_model
from shoal.storage.records import ExplanationCheck, WrittenText, WrittenToken
from shoal.tasks.outputs import logits_of

PROMPT, WRITTEN = 32, 32  # tokens of a prompt, the beginning of a row; and that are written after it
ALTERNATIVES = 5
LOGITS_AT_A_TIME = 1 << 24


@dataclass(frozen=True, eq=False)
class Language:
    """What was written after the beginnings of some rows, and whether the model has learnt anything.

    Attributes:
        losses: [n], the mean cross entropy of the tokens of each row.
    """

    losses: Tensor
    check: ExplanationCheck
    texts: list[WrittenText]


@torch.no_grad()
def token_losses(model: nn.Module, rows: Tensor, vocabulary: int) -> tuple[Tensor, float]:
    """Return the mean loss of each row [n] of tokens [n, context + 1], and the entropy of how frequent tokens are."""
    targets = rows[:, 1:]
    at_a_time = max(1, LOGITS_AT_A_TIME // (targets.shape[1] * vocabulary))
    parts = [
        F.cross_entropy(
            logits_of(call_model(model, some[:, :-1])).double().transpose(1, 2),
            some[:, 1:],
            ignore_index=PAD,
            reduction="none",
        )
        for some in rows.split(at_a_time)
    ]
    counts = (targets != PAD).sum(dim=1).clamp(min=1)
    shares = torch.bincount(targets[targets != PAD]).double()
    shares = shares[shares > 0] / shares.sum()
    return torch.cat(parts).sum(dim=1) / counts, float(-(shares * shares.log()).sum())


def write_rows(
    predictor: Predictor, rows: Tensor, losses: Tensor, constant: float, chosen: Mapping[int, str]
) -> Language:
    """Have a model continue the beginnings of rows by its likeliest tokens.

    Args:
        rows: token ids [n, context + 1].
        losses: [n] of them.
        constant: the loss of the frequencies of tokens alone.
        chosen: numbers of rows, and why each is continued.
    """
    tokenizer = predictor.transform.tokenizer
    assert tokenizer is not None
    spelling, context = tokenizer_from_json(tokenizer).spelling, predictor.transform.input_shape[0]
    texts = []
    for row, why in chosen.items():
        tokens = rows[row][rows[row] != PAD][: min(PROMPT, max(1, context // 2))]
        texts.append(
            WrittenText(
                row=row,
                why=why,
                loss=float(losses[row]),
                prompt="".join(spell(tokens.tolist(), spelling)),
                tokens=_write(predictor.model, tokens, spelling, context),
            )
        )
    return Language(losses, learned_beside(float(losses.mean()), constant), texts)


@torch.no_grad()
def _write(model: nn.Module, tokens: Tensor, spelling: Sequence[bytes], context: int) -> list[WrittenToken]:
    """Return the likeliest tokens after some [t], up to the end of the document."""
    written: list[WrittenToken] = []
    while len(written) < WRITTEN:
        logits = logits_of(call_model(model, tokens[None, -context:]))[0, -1]
        probabilities, ids = logits.double().softmax(dim=0).topk(min(1 + ALTERNATIVES, len(logits)))
        names, values = spell(ids.tolist(), spelling), probabilities.tolist()
        others = dict(zip(names[1:], values[1:], strict=True))
        written.append(WrittenToken(token=names[0], probability=values[0], alternatives=others))
        tokens = torch.cat([tokens, ids[:1]])
        if int(ids[0]) == END:
            break
    return written
