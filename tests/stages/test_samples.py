"""Images of a latent model: what the sampler ends with, through the first stage."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, VQModel

from qdexp import models
from qdexp.cell import Cell
from qdexp.config import FirstStage
from qdexp.sampling.sampler import Sampler
from qdexp.sampling.shards import DECODED, Sampling, read_shards
from qdexp.stages.samples import SamplesStage
from qdexp.store import Store

TINY: dict[str, Any] = {
    **{"in_channels": 1, "out_channels": 1, "latent_channels": 1, "layers_per_block": 1, "norm_num_groups": 4},
    **{"block_out_channels": [8, 8], "sample_size": 28},
    **{"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2},
}
STAGES: dict[str, tuple[Any, dict[str, Any]]] = {
    "VQModel": (VQModel, {"num_vq_embeddings": 7}),
    "AutoencoderKL": (AutoencoderKL, {}),
}


@torch.inference_mode()
@pytest.mark.parametrize("kind", STAGES)
def test_latents_are_decoded_at_their_scale_a_few_at_a_time(cell_of: Callable[..., Cell], tmp_path: Path, kind: str) -> None:
    cls, more = STAGES[kind]
    autoencoder = cls(**TINY, **more).eval()
    if kind == "VQModel":
        autoencoder.quantize.embedding.weight.normal_()
    autoencoder.decoder.conv_out.weight.mul_(8)  # so that much lies outside [-1, 1]
    autoencoder.save_pretrained(tmp_path / "vae")
    config = cell_of().config
    network = {"_target_": f"diffusers.{kind}", **TINY, **more}
    stage = FirstStage(str(tmp_path), network, scale=0.25, shift=0.5)
    config = replace(config, model=replace(config.model, shape=[1, 14, 14], first_stage=stage))
    samples = SamplesStage.of(config)
    images = torch.cat(list(read_shards(samples.make(Store(tmp_path / "out")).folder, "images")))

    assert config.sampling.batch > DECODED
    walk = Sampling(models.build(config.model, True), Sampler(config.model, config.protocol), samples.stream)
    latents = [walk.sampler.run(walk.network, walk.sources(shard), torch.device("cpu")) for shard in samples.shards]
    decoded = autoencoder.decode(torch.cat(latents)[: config.protocol.n] / 0.25 + 0.5).sample
    assert images.shape == (config.protocol.n, 1, 28, 28)
    difference = (images.float() - (decoded.clamp(-1, 1) + 1) * 127.5).abs()  # of all at once: sums end in another last bit
    assert difference.max() < 0.51
    assert 0.01 < (decoded.abs() > 1).float().mean() < 0.9
    assert {0, 255} <= set(images.unique().tolist())


def test_scale_and_weights_of_the_first_stage_change_the_images_key(cell_of: Callable[..., Cell], tmp_path: Path) -> None:
    config, network = cell_of().config, {"_target_": "diffusers.AutoencoderKL", **TINY}

    def key(scale: float) -> str:
        model = replace(config.model, first_stage=FirstStage(str(tmp_path), network, scale))
        return SamplesStage.of(replace(config, model=model)).key

    autoencoder = AutoencoderKL(**TINY)
    autoencoder.save_pretrained(tmp_path / "vae")
    before = key(1.0)
    assert before == key(1.0) != key(0.5)
    autoencoder.decoder.conv_out.bias.data += 1
    autoencoder.save_pretrained(tmp_path / "vae")
    assert key(1.0) != before
