"""Models: plain `nn.Module`s, each with a width and a depth.

- `registry`: by name, or a user's own by import path
- `mlp`, `gpt`, `bert`, `resnet`, `inception`, `detector`, `speech`, `huggingface`: one per file; `transformer` and
  `convolution` are shared
- `mup`: the maximal update parametrization; `weight_decay`: which parameters it spares
- `inputs`: stored rows as a model takes them; `call`: how these reach its forward
- `patterns`: parameters by patterns of their names
- `config`: the `model` section; `huggingface_config`: the sizes of a transformers architecture
- `pretrained`: initial weights from files; `freezing`: parameters that are not trained
- `layer_sizes`: the sizes of layers that were pruned
- `weights`: in a file, as 8-bit integers too
- `size`, `flops`, `activation_memory`, `memory_estimate`: parameters, operations, memory
- `cpu_kernels`: linear layers by oneDNN; `dropout`, `row_noise`: masks and random numbers
  that do not depend on the worker, of `row_draws`

Depends on `data` (shapes of rows, the hash of their order) and `distributed`; independent of tasks, of the loop and of
Ray.
"""
