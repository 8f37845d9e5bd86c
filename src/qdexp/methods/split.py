"""Split shortcuts, as a step: it says which convolutions are quantized in parts, before anything is."""

from contextlib import suppress
from dataclasses import dataclass
from typing import ClassVar, Literal

from qdexp import models
from qdexp.config import ACTIVATIONS, WEIGHTS, Config, Quant
from qdexp.methods.base import Step, Work
from qdexp.models.conditions import example_row
from qdexp.quant.network import split
from qdexp.quant.shortcuts import split_sizes


@dataclass(frozen=True, kw_only=True)
class SplitShortcuts(Step):
    """Convolutions that read a concatenation get a grid for each of its parts, for weights and activations (Q-Diffusion, Li et
    al. 2023, arXiv 2302.04304, section 3.3).

    ``scope``: those that read it directly (skip), also those that read it through norms and nonlinearities (skip+conv1), or
    none (off).
    """

    bits: ClassVar[frozenset[str]] = frozenset()
    precedes: ClassVar[frozenset[str]] = frozenset({WEIGHTS, ACTIVATIONS})
    calibrated: ClassVar[bool] = False
    quick: ClassVar[bool] = True

    scope: Literal["off", "skip", "skip+conv1"] = "skip"

    def applies(self, quant: Quant) -> bool:
        return self.scope != "off"

    def check(self, config: Config) -> None:
        network = models.skeleton(config.model)
        with suppress(RuntimeError, TypeError):  # asks for values, or for conditions of its own: the step itself will tell
            split_sizes(network, example_row(network, config.model.shape), self.scope)

    def apply(self, work: Work) -> None:
        split(work.network, split_sizes(work.network, work.example, self.scope))
