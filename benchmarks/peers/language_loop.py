"""The peer of `language.py`: a plain PyTorch loop over Shoal's own model class, in the manner of nanoGPT's script."""

import numpy as np
import torch
import torch.nn.functional as F
from language_workload import CONTEXT, SIZES, STEPS, VOCABULARY, Ends, arguments, batches

from shoal.models.gpt import GPT


def main() -> None:
    given = arguments()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = SIZES[given.size]
    model = GPT(
        (CONTEXT,), VOCABULARY, width=shape.width, depth=shape.depth, heads=shape.heads, positions="learned"
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    ends = Ends()
    for inputs, targets in batches(np.load(given.tokens, mmap_mode="r"), STEPS[given.size]):
        logits = model(inputs)
        loss = F.cross_entropy(logits.view(-1, VOCABULARY), targets.reshape(-1))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        ends.note()
    ends.write(given.out)


if __name__ == "__main__":
    main()
