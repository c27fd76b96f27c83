"""A trained model made smaller or faster: by a student, pruned, or with narrower numbers; measured beside the original.

- `config`: of the job
- `distillation`: a smaller model that is taught by the outputs of the trained one
- `structured`: channels, hidden units and attention heads that leave; `feed_forward`: those of any transformer;
  `magnitude`: weights that become zeros
- `fine_tuning`: a pruned model or a student, trained through the ordinary loop from its newest checkpoint
- `int8`: 8-bit integers by ONNX Runtime
- `files`: a compressed model saved as any other
- `loaded`: models that torch or ONNX Runtime has loaded; `measure`: how long they take, how large they are
- `agreement`: whether it answers by the same parts of its inputs
- `variants`: each of them, made, saved and loaded
- `gate`: what speaks against a variant; `limits`: what it has to fit into, and which one is picked

Depends on a trained model, its export, its training, and rank correlations and embeddings of `explain`; independent of
Ray. The packages that prune and quantize are imported where they are used.
"""
