"""Trains the embedded model ``dit_fashion``, as ``qdexp.zoo.training`` says: eps(x_t, t, class).

    python -m qdexp.zoo.train_dit --out runs/dit_fashion

A tenth of the classes is replaced by "no class", so that one network predicts both branches of classifier-free guidance (Ho and
Salimans, arXiv 2207.12598, algorithm 1).
"""

from typing import Any

import torch
from diffusers.models.embeddings import LabelEmbedding
from torch import Tensor

from qdexp.zoo.training import NoiseTraining, parse, train

DROPPED = 0.1


class ConditionalTraining(NoiseTraining):
    """Learns eps(x_t, t, class) of a diffusion transformer (Peebles and Xie, arXiv 2212.09748)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for module in self.network.modules():
            if isinstance(module, LabelEmbedding):
                self.empty = module.num_classes
                module.dropout_prob = 0.0  # each block has an embedding that would drop for itself; we drop once for all

    def estimate(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """eps [n, c, h, w]; in training a tenth of the ``labels`` is dropped."""
        if self.training:
            labels = torch.where(torch.rand(len(labels), device=labels.device) < DROPPED, self.empty, labels)
        eps: Tensor = self.network(x_t, t, class_labels=labels, return_dict=False)[0]
        return eps


if __name__ == "__main__":
    train(ConditionalTraining, "dit_fashion", parse(__doc__, batch=32, lr=1e-3))
