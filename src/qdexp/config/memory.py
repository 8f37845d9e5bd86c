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
    """The places of the rows of block-wise learning. No result depends on them.

    Attributes:
        device_gb: GB (10^9 bytes) of rows in the device's memory; on a CPU ``host_gb`` alone counts. ``auto``: what is free,
            less a margin.
        host_gb: GB of further rows in the host's memory. ``auto``: what is free, less a margin.
        scratch: The folder for the rest, in files. ``auto``: the node's own temporary folder.
    """

    device_gb: GB = "auto"
    host_gb: GB = "auto"
    scratch: Annotated[Text, Field(min_length=1, description="a folder, or auto")] = AUTO
