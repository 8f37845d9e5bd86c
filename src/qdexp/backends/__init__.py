"""Backends: what ``backend`` names as its ``_target_``. See ``qdexp.backends.base``."""

from qdexp.backends.base import Backend, Lowered
from qdexp.backends.int8 import Int8
from qdexp.backends.simulated import Simulated

__all__ = ["Backend", "Int8", "Lowered", "Simulated"]
