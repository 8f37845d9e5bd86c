"""Backends: what ``backend`` names as its ``_target_``. See ``qdexp.backends.base``."""

from qdexp.backends.base import Backend, Lowered
from qdexp.backends.simulated import Simulated

__all__ = ["Backend", "Lowered", "Simulated"]
