"""A condition of one's own: made-up embeddings of texts, as Stable Diffusion 3 takes them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from qdexp.config import Config, Model
from qdexp.models.conditioning import Conditioning
from qdexp.models.conditions import Condition


@dataclass(frozen=True)
class MadeUpTexts(Conditioning):
    """``tokens`` of ``width`` numbers, and ``pooled`` numbers beside them; number 0 asks for nothing."""

    tokens: int
    width: int
    pooled: int

    def check(self, config: Config) -> None:
        return

    def wanted(self, config: Config, stream: str, samples: int) -> Sequence[int]:
        return range(1, 4)

    def named(self, config: Config, stream: str, samples: int) -> dict[str, Any]:
        return {"texts": 3}

    def identity(self, model: Model) -> dict[str, Any]:
        return vars(self)

    def encode(self, wanted: Sequence[int], model: Model, device: torch.device) -> Condition:
        rows = [torch.Generator().manual_seed(number) for number in wanted]
        text = torch.stack([torch.randn(self.tokens, self.width, generator=row) for row in rows])
        return {"encoder_hidden_states": text, "pooled_projections": text[:, 0, :1].expand(-1, self.pooled).contiguous()}

    def nothing(self, model: Model, device: torch.device) -> Condition:
        return self.encode([0], model, device)
