"""The quantized network as a cell runs it: read from its checkpoint and lowered by the backend, here and nowhere else."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from qdexp.backends import Simulated
from qdexp.backends.base import Lowered, NamedBackend
from qdexp.models import checkpoint
from qdexp.models.architecture import named
from qdexp.models.conditions import example_row, has_example
from qdexp.quant.macs import count, macs_by_module
from qdexp.stages.steps import StepStage

NAMES = 3
"""The number of modules, among those that a backend leaves, that are printed."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Quantized:
    """The quantized network among a stage's fields; ``quantization``: the stage that made it."""

    quantization: StepStage
    backend: NamedBackend

    def saved(self, inputs: Mapping[str, Path]) -> nn.Module:
        """The network as the method left it, on the device of that stage; ``inputs``: folders, by the roles of the stages."""
        made = self.quantization
        network = checkpoint.load(inputs["quantization"] / checkpoint.FOLDER, named(made.model.network))
        return network.to(made.device)

    def lowered(self, network: nn.Module) -> nn.Module:
        """The network that runs in place of ``network``, which may be changed."""
        backend, model = self.backend.backend, self.quantization.model
        counted = not isinstance(backend, Simulated) and has_example(model)
        macs = macs_by_module(count(network, example_row(network, model))) if counted else Counter[str]()
        made = backend.lower(network)
        report(made, macs)
        return made.network

    def running(self, inputs: Mapping[str, Path]) -> nn.Module:
        """The network that the cell runs."""
        return self.lowered(self.saved(inputs))


def report(made: Lowered, macs: Counter[str]) -> None:
    """Prints what the backend has left in simulated arithmetic, a line for each reason. ``macs``: by module, where they are
    known."""
    for reason in dict.fromkeys(made.left.values()):
        names = [name for name, why in made.left.items() if why == reason]
        more = f" and {len(names) - NAMES} more" if len(names) > NAMES else ""
        inside = tuple(f"{name}." for name in names)
        own = sum(value for name, value in macs.items() if f"{name}.".startswith(inside))
        share = f" ({own / macs.total():.1%} of the MACs)" if macs else ""
        print(f"  left to simulated arithmetic, {reason}: {', '.join(names[:NAMES])}{more}{share}", flush=True)
