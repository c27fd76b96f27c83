"""The peer of `language.py`: transformers' Trainer with its GPT-2 of the same shape, on rows cut beforehand."""

import tempfile
from typing import Any

import numpy as np
import torch
from language_workload import BATCH, CONTEXT, SIZES, STEPS, VOCABULARY, Ends, arguments
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments


class Rows(torch.utils.data.Dataset):
    """Sequences one after another, as a tokenized data set holds them."""

    def __init__(self, tokens: np.ndarray) -> None:
        self._rows = tokens[: len(tokens) // CONTEXT * CONTEXT].reshape(-1, CONTEXT)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> dict[str, Any]:
        ids = torch.from_numpy(self._rows[row].astype(np.int64))
        return {"input_ids": ids, "labels": ids}


class NoteEnds(TrainerCallback):
    def __init__(self, ends: Ends) -> None:
        self._ends = ends

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._ends.note()


def main() -> None:
    given = arguments()
    torch.set_num_threads(1)
    shape, ends = SIZES[given.size], Ends()
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=CONTEXT, n_embd=shape.width, n_layer=shape.depth, n_head=shape.heads,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=2, eos_token_id=2,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        spec = TrainingArguments(
            folder, per_device_train_batch_size=BATCH, max_steps=STEPS[given.size], learning_rate=1e-3,
            optim="adamw_torch_fused", report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True,
            logging_strategy="no",
        )  # fmt: skip
        rows = Rows(np.load(given.tokens, mmap_mode="r"))
        Trainer(GPT2LMHeadModel(config), spec, train_dataset=rows, callbacks=[NoteEnds(ends)]).train()
    ends.write(given.out)


if __name__ == "__main__":
    main()
