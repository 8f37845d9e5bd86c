"""Steps of methods: what a slot of ``quantizer.steps`` names as its ``_target_``. See ``qdexp.methods.base``."""

from qdexp.methods.base import Step, Work
from qdexp.methods.blockwise import AdaRound, Gptq, LearnScales
from qdexp.methods.low_rank import LowRank
from qdexp.methods.observe import Observe
from qdexp.methods.released import Released
from qdexp.methods.rotate import Rotate
from qdexp.methods.smooth import Smooth
from qdexp.methods.split import SplitShortcuts
from qdexp.methods.timesteps import TimestepScales
from qdexp.methods.weights import Nearest, WeightRounding

__all__ = [
    "AdaRound",
    "Gptq",
    "LearnScales",
    "LowRank",
    "Nearest",
    "Observe",
    "Released",
    "Rotate",
    "Smooth",
    "SplitShortcuts",
    "Step",
    "TimestepScales",
    "WeightRounding",
    "Work",
]
