"""The adapter: all that quantization has to know about the architecture of a network, found by calling it."""

from collections.abc import Mapping
from functools import cached_property

from torch import nn

from qdexp.quant.attention import Site, attention_sites
from qdexp.quant.blocks import Batch, blocks_of
from qdexp.quant.network import execution_order
from qdexp.quant.shortcuts import Concatenation, concatenations


class Adapter:
    """Knowledge of a network's architecture, found when it is first asked for, also for quantized networks.

    Args:
        network: Any module; its class says nothing here.
        example: One row that it can be called with; on the meta device, where both are.
    """

    def __init__(self, network: nn.Module, example: Batch) -> None:
        self.network, self.example = network, example

    @cached_property
    def layers(self) -> list[str]:
        """The layers that are or can be quantized, in execution order."""
        return execution_order(self.network, self.example)

    @cached_property
    def sites(self) -> Mapping[str, Site]:
        """The modules that multiply activations. For quantized modules it does not say how."""
        return attention_sites(self.network, self.example, self.layers)

    @cached_property
    def blocks(self) -> Mapping[str, tuple[bool, ...]]:
        """The blocks that are learned one at a time, in execution order, as ``blocks_of`` gives them."""
        return blocks_of(self.network, self.layers, self.example)

    @cached_property
    def concatenations(self) -> Mapping[str, Concatenation]:
        """The concatenations that convolutions read."""
        return concatenations(self.network, self.example)
