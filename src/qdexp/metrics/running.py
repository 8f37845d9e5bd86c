"""The network of a cell as it runs, for metrics that measure what it costs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from qdexp.quant.blocks import Batch, call, first_row


@dataclass(frozen=True, kw_only=True)
class Running:
    """A network and what it can be called with.

    Attributes:
        network: As its backend has made it, or in full precision; in eval mode on the device.
        example: ``sampling.batch`` rows, x_t of noise.
    """

    network: nn.Module
    example: Batch

    @property
    def batch(self) -> int:
        """The rows of a batch of the sampler."""
        return len(self.example[0])

    def forward(self, rows: int) -> Callable[[], Any]:
        """One call of the network with the first ``rows`` of the example, as the sampler makes it."""
        part = first_row(self.example, rows)

        def once() -> Any:
            with torch.inference_mode():
                return call(self.network, part)

        return once
