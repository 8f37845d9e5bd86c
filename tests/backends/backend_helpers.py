"""Backends that a user could have written."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Gt
from torch import Tensor, nn

from qdexp.backends import Backend, Lowered
from qdexp.config import Config


@dataclass(frozen=True, kw_only=True)
class Scaled(Backend):
    """Multiplies what the network computes by ``factor``."""

    factor: Annotated[float, Gt(0)] = 2.0

    def check(self, config: Config) -> None:
        if self.factor == 13:
            raise ValueError(f"factor={self.factor}: brings bad luck; choose another one")

    def lower(self, network: nn.Module) -> Lowered:
        def scale(module: nn.Module, args: Any, output: Any) -> Any:
            return output * self.factor if isinstance(output, Tensor) else type(output)(output[0] * self.factor)

        network.register_forward_hook(scale)
        return Lowered(network=network, left={"conv_in": "too small", "conv_out": "too small"})


@dataclass(frozen=True, kw_only=True)
class Filed(Scaled):
    """Reads a file."""

    table: str

    def files(self) -> dict[str, Path]:
        if not Path(self.table).is_file():
            raise ValueError(f"table={self.table}: no such file")
        return {"table": Path(self.table)}


@dataclass(frozen=True, kw_only=True)
class Sleeping(Backend):
    """Takes 50 ms more for each call."""

    def lower(self, network: nn.Module) -> Lowered:
        network.register_forward_pre_hook(lambda *_: time.sleep(0.05))
        return Lowered(network=network)
