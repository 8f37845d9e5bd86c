"""The first stage of latent diffusion (Rombach et al., CVPR 2022, arXiv 2112.10752): from latents to images."""

from typing import Any

from torch import Tensor, nn


class Decoder(nn.Module):
    """images = D(z / scale + shift), D the decoder of one of diffusers' autoencoders; a VQ one looks z up in its codebook."""

    def __init__(self, autoencoder: Any, scale: float, shift: float = 0.0) -> None:
        super().__init__()
        self.autoencoder, self.scale, self.shift = autoencoder, scale, shift

    def decode(self, latents: Tensor) -> Tensor:
        """latents [n, c, h, w], as the sampler ends with them -> images [n, 3, H, W] in about [-1, 1]."""
        images: Tensor = self.autoencoder.decode(latents / self.scale + self.shift, return_dict=False)[0]
        return images
