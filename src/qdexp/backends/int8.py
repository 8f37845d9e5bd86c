"""Integers on a CPU: what is quantized to at most 8 bits is multiplied by oneDNN's int8 kernels."""

from dataclasses import dataclass

from torch import nn

from qdexp import device as devices
from qdexp.backends.base import Backend, Lowered
from qdexp.backends.integer import kernels
from qdexp.backends.integer.attention import to_integer_attention
from qdexp.backends.integer.layers import BITS, IntegerLayer, lacks, to_integer
from qdexp.backends.integer.norms import quicken
from qdexp.config import Config
from qdexp.errors import UserError
from qdexp.quant.attention import quantized_sites
from qdexp.quant.network import quantized_layers

ATTENTION = "products of activations whose grids are computed at the call, or that are no attention"


@dataclass(frozen=True, kw_only=True)
class Int8(Backend):
    """Convolutions and linear layers of which weight and input are integers of at most 8 bits, one scale for each output
    channel of the weight, and of the input one for the tensor, the row, the token or the group of timesteps.

    ``force``: also on a CPU that has no instructions for it, where it is slow.
    """

    force: bool = False

    def check(self, config: Config) -> None:
        if devices.resolve(config.device).type != "cpu":
            raise ValueError("name=int8: its kernels are those of a CPU; give device=cpu, or backend=simulated")
        self._require_kernels()
        quant = config.quant
        if quant.layers:  # they may have other bits than the format
            return
        for what, bits, grid in (("weight", quant.weight_bits, quant.weight), ("act", quant.act_bits, quant.act)):
            wrong = [f"{what}_bits={bits}"] if bits > BITS else []
            wrong += [f"{what}.number={grid.number}"] if grid.number != "int" else []
            wrong += [f"{what}.granularity={grid.granularity}"] if grid.granularity == "per_group" else []
            for option in wrong:
                raise UserError(f"quant.{option}: backend=int8 multiplies integers of at most {BITS} bits without groups; give "
                                f"quant=w8a8 or another such, or backend=simulated")  # fmt: skip

    def lower(self, network: nn.Module) -> Lowered:
        self._require_kernels()
        left = {}
        for name, layer in list(quantized_layers(network)):
            reason = lacks(layer)
            if reason is None:
                to_integer(layer)
            else:
                left[name] = reason
        if not any(isinstance(layer, IntegerLayer) for layer in network.modules()):
            raise UserError(f"backend=int8: no layer of the network has integers of at most {BITS} bits as weight and input; "
                            f"give backend=simulated")  # fmt: skip
        for name, site in quantized_sites(network).items():
            products = [one for product, one in zip(site.products, site.quantized_products, strict=True) if product]
            taken = [to_integer_attention(one) for one in products]
            if not all(taken):
                left[name] = ATTENTION
        quicken(network)
        return Lowered(network=network, left=left)

    def _require_kernels(self) -> None:
        if not kernels.are_there():
            raise UserError("backend=int8: this torch has no integer kernels of oneDNN; give backend=simulated")
        if not (self.force or kernels.are_fast()):
            raise UserError("backend.force=false: this CPU has no AVX512-VNNI, so integers are slower than floating point; "
                            "choose backend=simulated, or give backend.force=true")  # fmt: skip
