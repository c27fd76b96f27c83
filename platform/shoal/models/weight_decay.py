"""Which parameters weight decay spares: biases, norm gains and embeddings, as the recipes of GPT and BERT do.

Depends on modules; independent of optimizers and of how much they decay.
"""

from torch import nn

SPARED = (nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.RMSNorm)


def without_decay(model: nn.Module) -> set[str]:
    """Return the names of the parameters that are no matrices.

    A matrix has two or more dimensions and belongs to no embedding and no norm. A weight that an embedding shares with
    an output layer is an embedding, as it is in muP.
    """
    spared = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, SPARED)
        for parameter in module.parameters(recurse=False)
    }
    return {name for name, tensor in model.named_parameters() if tensor.ndim < 2 or id(tensor) in spared}
