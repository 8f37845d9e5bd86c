"""Options of how many rows go through a network at once, and of where calibration rows lie while blocks are learned."""

from dataclasses import dataclass
from typing import Annotated, Final, Literal

from annotated_types import Ge
from pydantic import Field, GetPydanticSchema

from qdexp.config.checks import Finite, Positive, Text

AUTO: Final = "auto"
Batch = Annotated[int, GetPydanticSchema(lambda _, handler: handler.generate_schema(Positive | Literal["auto"]))]
"""Rows at once. ``auto``, by the model, until the config is frozen: see ``qdexp.footprint.batches``."""
GB = Annotated[Annotated[float, Ge(0), Finite] | Literal["auto"], Field(description="GB of 10^9 bytes, or auto: what is free")]


@dataclass(frozen=True, kw_only=True)
class Memory:
    """How many GB (10^9 bytes) of rows lie in the device's memory and, beyond these, in the host's; the rest lies in files in
    the folder ``scratch``. ``auto``: what is free, less a margin; the node's own temporary folder.

    On a CPU the device's memory is the host's: ``host_gb`` alone counts. No result depends on any of this.
    """

    device_gb: GB = "auto"
    host_gb: GB = "auto"
    scratch: Annotated[Text, Field(min_length=1, description="a folder, or auto")] = AUTO
