"""CLIP score: how well an image shows its prompt (Hessel et al., EMNLP 2021, arXiv 2104.08718).

    score(image, prompt) = max(100 cos(E_image, E_prompt), 0)

with the embeddings of a CLIP model (Radford et al., arXiv 2103.00020). This is the scale of torchmetrics and of papers on
diffusion models; CLIPScore as first defined has 2.5 in place of 100, and puts "A photo depicts" before the text. Prompts that
are too long for the model are cut.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor

from qdexp.config import Config
from qdexp.errors import UserError
from qdexp.metrics.base import PROMPTS, SAMPLES, Material, Metric
from qdexp.models.text import Files, clip_files, load, load_network
from qdexp.models.weights import WeightFiles
from qdexp.numbers import Number

PIECE = 32
"""Images of one forward pass: fixed, since it may change a score's last bit."""


@dataclass(frozen=True, kw_only=True)
class ClipScore(Metric):
    """CLIP score with the model that ``protocol.clip`` names, which is a part of the protocol, with the version of
    transformers."""

    numbers: ClassVar[tuple[Number, ...]] = (
        Number(
            "clip",
            "CLIP",
            shown=("overview", "brief", "alone"),
            higher=True,
            differences=True,
            meaning="How well images show their prompts: 100 x the cosine of CLIP's embeddings of both, at least 0.",
        ),
    )
    needs: ClassVar[frozenset[str]] = frozenset({SAMPLES, PROMPTS})

    def measure(self, material: Material) -> dict[str, Tensor]:
        scorer = _loaded(f"protocol.clip={material.files['config.json'].parent}", material.files, material.device)
        return {"clip": torch.cat([scorer.scores(images, prompts) for images, prompts in material.prompted()])}

    def applies(self, config: Config) -> bool:
        return config.protocol.clip is not None

    def files(self, config: Config) -> Files:
        option = f"protocol.clip={config.protocol.clip}"
        try:
            return clip_files(str(config.protocol.clip))
        except FileNotFoundError as error:
            raise UserError(f"{option}: {error}; name a folder or a hub name of a CLIP model, such as "
                            f"openai/clip-vit-base-patch16, or leave it null") from error  # fmt: skip

    def check(self, config: Config) -> None:
        """UserError unless the model is there, whole, and takes such images."""
        option, found = f"protocol.clip={config.protocol.clip}", self.files(config)
        WeightFiles((path for role, path in found.items() if role.startswith("weights")), option).check_digests()
        _loaded(option, found, torch.device("cpu"))

    def identity(self, config: Config) -> dict[str, str]:
        return {"library": f"transformers {transformers.__version__}"}


def _loaded(option: str, found: Mapping[str, Path], device: torch.device) -> "ClipScorer":
    folder = found["config.json"].parent
    model = load_network(transformers.CLIPModel, folder, option)
    tokenizer = load(transformers.CLIPTokenizer, folder, option)
    return ClipScorer(model, tokenizer, load(transformers.CLIPImageProcessor, folder, option), device)


class ClipScorer:
    """CLIP score by ``model``, ``tokenizer`` and ``processor``: transformers' CLIPModel, CLIPTokenizer and
    CLIPImageProcessor."""

    def __init__(self, model: Any, tokenizer: Any, processor: Any, device: torch.device) -> None:
        self.model, self.tokenizer, self.processor, self.device = model.to(device), tokenizer, processor, device

    def scores(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """[n] (float32, on the CPU) of uint8 images [n, c, h, w], grey or RGB, and a prompt each."""
        starts = range(0, len(images), PIECE)
        return torch.cat([self._piece(images[start : start + PIECE], prompts[start : start + PIECE]) for start in starts])

    @torch.inference_mode()
    def _piece(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        longest = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(list(prompts), padding=True, truncation=True, max_length=longest, return_tensors="pt")
        tokens = tokens.to(self.device)
        pixels = self.processor(images=list(images.expand(-1, 3, -1, -1)), return_tensors="pt").pixel_values.to(self.device)
        found = self.model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, pixel_values=pixels)
        return (100 * (found.image_embeds * found.text_embeds).sum(-1)).clamp_min(0).float().cpu()
