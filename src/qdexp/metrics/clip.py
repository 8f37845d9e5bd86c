"""CLIP score: how well an image shows its prompt (Hessel et al., EMNLP 2021, arXiv 2104.08718).

    score(image, prompt) = max(100 cos(E_image, E_prompt), 0)

with the embeddings of a CLIP model (Radford et al., arXiv 2103.00020). This is the scale of torchmetrics and of papers on
diffusion models; CLIPScore as first defined has 2.5 in place of 100, and puts "A photo depicts" before the text. Prompts that
are too long for the model are cut.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

PIECE = 32
"""Images of one forward pass: fixed, since it may change a score's last bit."""


class ClipScore:
    """By ``model``, ``tokenizer`` and ``processor``: transformers' CLIPModel, CLIPTokenizer and CLIPImageProcessor."""

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
