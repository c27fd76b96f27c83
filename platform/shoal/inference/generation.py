"""Text from a trained language model: a prompt continued, masked tokens filled in."""

import codecs
from collections.abc import Iterator
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shoal.data.tokenizer import END, MASK, SPECIALS, Tokenizer

MASK_WORD = "[MASK]"


def stream_text(
    model: nn.Module,
    tokenizer: Tokenizer,
    context: int,
    prompt: str,
    count: int,
    temperature: float = 1.0,
    seed: int = 0,
) -> Iterator[str]:
    """Yield a causal model's continuation of a prompt: `count` tokens, or fewer if it ends the document.

    A token may spell a part of a character, so that a piece of text may be empty, or of several tokens.

    Args:
        model: causal language model, [1, t] token ids to [1, t, vocabulary] logits.
        tokenizer: the one the model was trained with.
        context: the largest number of tokens that the model takes.
        prompt: text to continue.
        count: tokens to add.
        temperature: 0 takes the likeliest token each time.
        seed: of the tokens drawn.
    """
    start = torch.tensor([[END, *tokenizer.encode(prompt).tolist()][-context:]])
    draw = torch.Generator().manual_seed(seed)
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token in _tokens(model, start, count, context, temperature, draw):
        if token == END:
            break
        yield decoder.decode(tokenizer.spelling[token])
    yield decoder.decode(b"", final=True)


def _tokens(
    model: nn.Module, start: Tensor, count: int, context: int, temperature: float, draw: torch.Generator
) -> Iterator[int]:
    """Yield the ids that continue [1, t]."""
    options = {"temperature": temperature, "generator": draw}
    if hasattr(model, "stream"):
        yield from (int(token) for token in cast(Any, model).stream(start, count, **options))
    elif hasattr(model, "generate"):
        with torch.no_grad():
            tokens = cast(Any, model).generate(start, count, **options)
        yield from tokens[0, start.shape[1] :].tolist()
    else:
        yield from _recomputed(model, start, count, context, temperature, draw)


def fill_in(model: nn.Module, tokenizer: Tokenizer, context: int, text: str) -> str:
    """Return a text with each [MASK] replaced by the token that a masked model predicts there."""
    ids: list[int] = []
    for number, part in enumerate(text.split(MASK_WORD)):
        ids += [MASK] * (number > 0) + tokenizer.encode(part).tolist()
    tokens = torch.tensor([ids[:context] or [END]])
    with torch.no_grad():
        likeliest = SPECIALS + model(tokens)[..., SPECIALS:].argmax(-1)
    return tokenizer.decode(torch.where(tokens == MASK, likeliest, tokens)[0].numpy())


def text_loss(model: nn.Module, tokenizer: Tokenizer, context: int, text: str, is_causal: bool) -> float:
    """Return the mean cross-entropy of a text's tokens: of the next one each, or of a masked model the token itself."""
    tokens = torch.tensor([[END, *tokenizer.encode(text).tolist()][: context + is_causal]])
    inputs, targets = (tokens[:, :-1], tokens[:, 1:]) if is_causal else (tokens, tokens)
    if not targets.numel():
        return 0.0
    with torch.no_grad():
        logits = model(inputs).float()
    return float(F.cross_entropy(logits.flatten(0, 1), targets.flatten()))


@torch.no_grad()
def _recomputed(
    model: nn.Module, tokens: Tensor, count: int, context: int, temperature: float, draw: torch.Generator
) -> Iterator[int]:
    """Yield the ids that a model without a cache adds: the whole context is computed again for each."""
    for _ in range(count):
        logits = model(tokens[:, -context:])[:, -1].float()
        if temperature > 0:
            token = torch.multinomial((logits / temperature).softmax(-1), 1, generator=draw)
        else:
            token = logits.argmax(-1, keepdim=True)
        yield int(token)
        tokens = torch.cat([tokens, token], 1)
