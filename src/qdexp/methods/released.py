"""A network as somebody released it, quantized: all of it is taken from a file."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from qdexp.config import ACTIVATIONS, UNTOUCHED, WEIGHTS, WITHOUT_EFFECT, Config
from qdexp.errors import UserError
from qdexp.methods.base import Step, Work
from qdexp.models import released


@dataclass(frozen=True, kw_only=True)
class Released(Step):
    """Takes the whole network from a checkpoint that Q-Diffusion's authors released (Li et al. 2023, arXiv 2302.04304).

    Attributes:
        file: The path of the checkpoint.
    """

    quantizes: ClassVar[frozenset[str]] = frozenset({WEIGHTS, ACTIVATIONS})
    precedes: ClassVar[frozenset[str]] = frozenset({WEIGHTS, ACTIVATIONS})
    calibrated: ClassVar[bool] = False
    from_weights: ClassVar[bool] = False

    file: str = field(metadata=WITHOUT_EFFECT)  # what is in it counts

    def files(self, config: Config) -> dict[str, Path]:
        if not Path(self.file).is_file():
            raise ValueError(f"file={self.file}: no such file; give the path of the released checkpoint")
        return {"released": Path(self.file)}

    def check(self, config: Config) -> None:
        quant = config.quant
        for option in ("first_last_bits", "first_act_bits", "layers"):
            if (value := getattr(quant, option)) is not None:
                raise UserError(f"quant.{option}={value}: in a released checkpoint all layers have the same bits; give "
                                f"quant.{option}=null")  # fmt: skip
        if quant.act.time != "static":
            raise UserError(f"quant.act.time={quant.act.time}: in a released checkpoint all grids are static")
        for what, grid, granularity in (("weight", quant.weight, "per_channel"), ("act", quant.act, "per_tensor")):
            if (grid.number, grid.granularity, grid.scale) != ("int", granularity, "float32"):
                raise UserError(f"quant.{what}: in a released checkpoint all grids are of integers, {granularity}, with scales "
                                f"in float32; give quant=w4a8 or another choice of these")  # fmt: skip
        if UNTOUCHED == quant.softmax_bits != quant.act_bits:
            raise UserError(f"quant.softmax_bits={UNTOUCHED}: in a released checkpoint the softmax is quantized; give 8, for "
                            f"Stable Diffusion 16")  # fmt: skip
        released.check(config.model, Path(self.file), quant)

    def apply(self, work: Work) -> None:
        released.fill(work.network.cpu(), Path(self.file), work.quant)
