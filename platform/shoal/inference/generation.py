"""Text from a trained language model: a prompt continued, masked tokens filled in."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from shoal.data.tokenizer import END, MASK, SPECIALS, Tokenizer

MASK_WORD = "[MASK]"


def continue_text(
    model: nn.Module,
    tokenizer: Tokenizer,
    context: int,
    prompt: str,
    count: int,
    temperature: float = 1.0,
    seed: int = 0,
) -> str:
    """Return a causal model's continuation of a prompt: `count` tokens, or fewer if it ends the document.

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
    with torch.no_grad():
        if hasattr(model, "generate"):
            tokens = cast(Any, model).generate(start, count, temperature=temperature, generator=draw)
        else:
            tokens = _generate(model, start, count, context, temperature, draw)
    generated: list[int] = tokens[0, start.shape[1] :].tolist()
    return tokenizer.decode(generated[: generated.index(END)] if END in generated else generated)


def fill_in(model: nn.Module, tokenizer: Tokenizer, context: int, text: str) -> str:
    """Return a text with each [MASK] replaced by the token that a masked model predicts there."""
    ids: list[int] = []
    for number, part in enumerate(text.split(MASK_WORD)):
        ids += [MASK] * (number > 0) + tokenizer.encode(part).tolist()
    tokens = torch.tensor([ids[:context] or [END]])
    with torch.no_grad():
        likeliest = SPECIALS + model(tokens)[..., SPECIALS:].argmax(-1)
    return tokenizer.decode(torch.where(tokens == MASK, likeliest, tokens)[0].numpy())


def _generate(
    model: nn.Module, tokens: Tensor, count: int, context: int, temperature: float, draw: torch.Generator
) -> Tensor:
    """Continue [1, t] with a model without a cache: the whole context is computed again for each token."""
    for _ in range(count):
        logits = model(tokens[:, -context:])[:, -1].float()
        if temperature > 0:
            token = torch.multinomial((logits / temperature).softmax(-1), 1, generator=draw)
        else:
            token = logits.argmax(-1, keepdim=True)
        tokens = torch.cat([tokens, token], 1)
    return tokens
