"""The process that loads a file of torch.export: python -m shoal.export.torch_process FILE PIPE.

A line of its input is JSON, `[NAMES, TENSORS]`: the inputs in order, and safetensors in base64; an answer has the
outputs `0`, `1`, ... in the same form. The first answer says that the file is loaded.
"""

import base64
import json
import sys

import torch
from safetensors.torch import load, save

from shoal.processes import open_answers


def main(path: str, pipe: str) -> None:
    """Load the file, and compute until the input ends."""
    answers = open_answers(pipe)
    module = torch.export.load(path).module()
    print(json.dumps("ready"), file=answers, flush=True)
    with torch.no_grad():
        for line in sys.stdin:
            names, text = json.loads(line)
            tensors = load(base64.b64decode(text))
            found = module(*(tensors[name] for name in names))
            outputs = {str(place): value.contiguous() for place, value in enumerate(found)}
            print(json.dumps(base64.b64encode(save(outputs)).decode()), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
