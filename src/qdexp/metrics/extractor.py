"""Feature extractors: the outputs that metrics read, and the origin of the weights.

Weights are compared with a pinned SHA-256 before they are used, since every number depends on their last bit, and since
torch-fidelity unpickles them, which runs whatever code they name. What is used are the very bytes that were compared.
"""

import hashlib
import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

from torch import nn

from qdexp import entries
from qdexp.config import NO_EXTRACTOR, WITHOUT_EFFECT
from qdexp.errors import UserError
from qdexp.files import sha256


@dataclass(frozen=True)
class Extractor(ABC):
    """One feature extractor.

    ``pool`` names the output [n, d] that FID, KID, precision and recall read, ``logits`` the output [n, k] of the Inception
    score, ``spatial`` the output [n, s] of sFID; null where there is none. ``shape`` is what an image's shape must begin with.
    ``digest`` is the SHA-256 of the file ``weights``; ``publisher``: where it can be had. ``random``: no file is read, and the
    numbers mean nothing. ``option``: how the user named it; ``place``: the option that says where the weights are; ``without``:
    the one that does without.
    """

    name: str
    pool: str
    shape: tuple[int, ...]
    weights: Path = field(metadata=WITHOUT_EFFECT)  # the digest says what is in it
    digest: str
    logits: str | None = None
    spatial: str | None = None
    publisher: str | None = field(default=None, metadata=WITHOUT_EFFECT)
    random: bool = False
    batch: int = 256  # fixed, since it may change a feature's last bit
    place: str = field(default="protocol.extractor_weights", metadata=WITHOUT_EFFECT)
    without: str = field(default=f"protocol.extractor={NO_EXTRACTOR}", metadata=WITHOUT_EFFECT)

    @property
    def option(self) -> str:
        """The option's name in messages."""
        return f"protocol.extractor={self.name}"

    @property
    def outputs(self) -> dict[str, str]:
        """The names of the outputs that metrics read, by what ``Features`` call them."""
        named = {"pool": self.pool, "logits": self.logits, "spatial": self.spatial}
        return {field: output for field, output in named.items() if output is not None}

    @property
    def library(self) -> str:
        """The versions of what computes."""
        return f"torch-fidelity {version('torch-fidelity')}"

    def takes(self, shape: Sequence[int]) -> bool:
        """Whether images of ``shape`` [c, h, w] can be looked at, or of [c] where their size is not known yet."""
        return all(made == taken for made, taken in zip(shape, self.shape, strict=False))

    @abstractmethod
    def build(self) -> nn.Module:
        """The network, in evaluation mode: from uint8 images to a tuple of ``outputs``.

        Raises UserError if the weights are missing or not the pinned ones.
        """

    def check(self) -> None:
        """Raises UserError if the weights are missing or not the pinned ones."""
        if not self.random:
            self._require(entries.digest)

    def checked_weights(self) -> bytes:
        """The content of the weights' file, if one is read; UserError if it is missing or not the pinned one."""
        if self.random:
            return b""
        self._require(sha256)  # read piece by piece: another file may be of any size
        content = self.weights.read_bytes()
        self._require(lambda _: hashlib.sha256(content).hexdigest())  # whoever writes there may have swapped the files
        return content

    def _require(self, digest: Callable[[Path], str]) -> None:
        if not self.weights.is_file():
            raise UserError(f"{self.option} lacks its weights; {self._fix()}")
        if digest(self.weights) != self.digest:
            raise UserError(f"{self.option}: {self.weights} has not SHA-256 {self.digest}; restore the file")

    def opened(self, given: io.BytesIO | str | None) -> io.BytesIO:
        """The weights: ``given`` is what ``build`` has checked, or, where torch-fidelity itself is asked for the extractor by
        its name, a path or nothing."""
        if isinstance(given, io.BytesIO):
            return given
        named = self if given is None else replace(self, weights=Path(given))
        return io.BytesIO(named.checked_weights())

    def _fix(self) -> str:
        if self.publisher is None:
            return f"put them at {self.weights}"
        place = f"fetch {self.publisher} to {self.weights}, or name its place as {self.place}"
        return f"{place}; without it: {self.without}"
