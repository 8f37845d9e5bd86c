"""The base of steps that change layers one by one so that they are easier to round, and compute the same in full precision."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from qdexp.config import ACTIVATIONS, UNTOUCHED, WEIGHTS, Config
from qdexp.errors import UserError
from qdexp.methods.base import BRANCHES, OPTION, Step, Work
from qdexp.models.describe import description_of
from qdexp.quant.blocks import Batch, call
from qdexp.quant.layers import QuantizedLayer, is_whole, to_quantized
from qdexp.quant.network import LayerBits, first_and_last


@dataclass(frozen=True, kw_only=True)
class LayerWise(Step):
    """Changes every layer whose weight or input is quantized, except convolutions of several groups, each of whose outputs
    reads some of the channels only, and except the first and the last layer, which the published methods leave alone.

    Attributes:
        first_last: Whether the first and the last layer are changed too.
    """

    precedes: ClassVar[frozenset[str]] = frozenset({WEIGHTS, ACTIVATIONS, BRANCHES})

    first_last: bool = False

    @abstractmethod
    def fits(self, layer: nn.Module, bits: LayerBits) -> bool:
        """Whether there is anything to be done in such a layer. It is one that computes with all channels."""

    def check(self, config: Config) -> None:
        description = description_of(config.model)
        if description is not None:  # else the step itself will tell
            self._chosen(description.network, description.order, description.plan(config.quant))

    def layers(self, work: Work) -> dict[str, QuantizedLayer]:
        """The layers to be changed, in execution order."""
        names = self._chosen(work.network, work.adapter.layers, work.plan)
        return {name: to_quantized(work.network.get_submodule(name)) for name in names}

    def _chosen(self, network: nn.Module, order: Sequence[str], plan: Mapping[str, LayerBits]) -> list[str]:
        ends = () if self.first_last else first_and_last(network, order)
        layers = {name: network.get_submodule(name) for name in order if name not in ends}
        chosen = [name for name, layer in layers.items() if is_whole(layer) and self.fits(layer, plan[name])]
        if not chosen:
            kept = "" if self.first_last else "; the first and the last layer are left alone unless it has first_last: true"
            raise UserError(f"{OPTION}: {type(self).__name__} finds no layer that it could change{kept}; leave the step "
                            f"out, or change model or quant")  # fmt: skip
        return chosen


def quantized_at_all(bits: LayerBits) -> bool:
    return bits != LayerBits(UNTOUCHED, UNTOUCHED)


@contextmanager
def watching(layers: Mapping[str, nn.Module], look: Callable[[str, Tensor, Tensor], None]) -> Iterator[None]:
    """While it lasts, ``look(name, input, output)`` after each call of each layer."""

    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda _, args, output: look(name, args[0], output)

    handles = [layer.register_forward_hook(hook(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def run_all(network: nn.Module, batches: Sequence[Batch]) -> None:
    """Calls a network with all batches."""
    network.eval()
    for batch in batches:
        call(network, batch)
