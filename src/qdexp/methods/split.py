"""Split shortcuts, as a step: it says which convolutions are quantized in parts, before anything is."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from qdexp.config import ACTIVATIONS, WEIGHTS, Config, Quant
from qdexp.methods.base import ROTATIONS, Step, Work
from qdexp.models.describe import description_of
from qdexp.quant.network import split
from qdexp.quant.shortcuts import chosen_sizes


@dataclass(frozen=True, kw_only=True)
class SplitShortcuts(Step):
    """Gives convolutions that read a concatenation a grid for each of its parts, for weights and activations (Q-Diffusion, Li
    et al. 2023, arXiv 2302.04304, section 3.3).

    Attributes:
        scope: The convolutions that are split: those that read a concatenation directly (``skip``), also those that read it
            through norms and nonlinearities (``skip+conv1``), or none (``off``).
    """

    bits: ClassVar[frozenset[str]] = frozenset()
    precedes: ClassVar[frozenset[str]] = frozenset({WEIGHTS, ACTIVATIONS, ROTATIONS})
    calibrated: ClassVar[bool] = False
    quick: ClassVar[bool] = True

    scope: Literal["off", "skip", "skip+conv1"] = "skip"

    def applies(self, quant: Quant) -> bool:
        return self.scope != "off"

    def check(self, config: Config) -> None:
        description = description_of(config.model)
        if description is not None:  # else the step itself will tell
            chosen_sizes(description.reads, self.scope)

    def apply(self, work: Work) -> None:
        split(work.network, chosen_sizes(work.adapter.concatenations, self.scope))
