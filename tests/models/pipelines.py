"""Tiny text-conditional models as diffusers saves them: a denoiser, its text encoders and their tokenizers, all random."""

import io
import json
import string
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import save_file
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
)

PROMPTS = ["a cat", "a dog on a mat", "Two red birds ", "the cat sat", "a mat"]
WIDTH, PROJECTED = 12, 10
START, END = "<|startoftext|>", "<|endoftext|>"
VOCABULARY = [*string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase), "ca", "cat</w>", START, END]
TOWER: dict[str, Any] = {"hidden_size": WIDTH, "intermediate_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
TEXT_TOWER: dict[str, Any] = {
    **TOWER,
    "vocab_size": len(VOCABULARY),
    "projection_dim": PROJECTED,
    "bos_token_id": VOCABULARY.index(START),
    "eos_token_id": VOCABULARY.index(END),
}

U_NET: dict[str, Any] = {
    "_target_": "diffusers.UNet2DConditionModel",
    "out_channels": 1,
    "layers_per_block": 1,
    "block_out_channels": [8, 8],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "mid_block_type": None,
    "norm_num_groups": 4,
    "attention_head_dim": 2,
    "cross_attention_dim": WIDTH,
}
NETWORKS: dict[str, dict[str, Any]] = {
    "tiny_sd": U_NET,
    "tiny_sdxl": {
        **U_NET,
        "cross_attention_dim": 2 * WIDTH,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 6 * 4 + PROJECTED,
    },
    "tiny_pixart": {
        "_target_": "qdexp.models.networks.PixArtModel",
        "patch_size": 4,
        "out_channels": 2,
        "num_layers": 2,
        "num_attention_heads": 2,
        "attention_head_dim": 4,
        "cross_attention_dim": 8,
        "caption_channels": WIDTH,
        "num_embeds_ada_norm": 1000,
        "norm_type": "ada_norm_single",
        "norm_elementwise_affine": False,
    },
}
AUTOENCODER: dict[str, Any] = {
    "_target_": "diffusers.AutoencoderKL",
    "in_channels": 1,
    "out_channels": 1,
    "latent_channels": 1,
    "norm_num_groups": 2,
    "block_out_channels": [4, 4],
    "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"],
}
"""Latents of half the edge, for ``tiny_sd``."""
SCHEDULE = {"num_train_timesteps": 1000, "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
CONDITIONS: dict[str, dict[str, Any]] = {
    "tiny_sd": {"_target_": "qdexp.models.prompts.StableDiffusionPrompts"},
    "tiny_sdxl": {"_target_": "qdexp.models.prompts.XLPrompts", "size": 28},
    "tiny_pixart": {"_target_": "qdexp.models.prompts.PixArtPrompts"},
}


def save_model(name: str, conf: Path, folder: Path) -> None:
    """The model's config in the user's folder ``conf``, and all that it loads in ``folder``."""
    size = 14 if name == "tiny_sd" else 28
    network = {"sample_size": size, "in_channels": 1, **NETWORKS[name]}
    subfolder = "transformer" if name == "tiny_pixart" else "unet"
    model: dict[str, Any] = {
        "name": name,
        "weights": str(folder),
        "subfolder": subfolder,
        "publisher": "https://example.org/tiny",
        "shape": [1, size, size],
        "network": network,
        "schedule": {**SCHEDULE, "prediction_type": "v_prediction" if name == "tiny_sdxl" else "epsilon"},
        "condition": {**CONDITIONS[name], "weights": "${model.weights}"},
    }
    if name == "tiny_sd":
        model["first_stage"] = {"weights": "${model.weights}", "network": AUTOENCODER}
        save_network(AUTOENCODER, folder / "vae")
    (conf / "model").mkdir(parents=True, exist_ok=True)
    (conf / "model" / f"{name}.yaml").write_text(OmegaConf.to_yaml(model))
    save_network(network, folder / subfolder)
    if name == "tiny_pixart":
        save_t5(folder)
        return
    save_clip(folder, CLIPTextModel)
    if name == "tiny_sdxl":
        save_clip(folder, CLIPTextModelWithProjection, "_2")


def save_network(network: dict[str, Any], folder: Path) -> None:
    """One of diffusers'."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    save_file(instantiate(network, _convert_="all").state_dict(), folder / "diffusion_pytorch_model.safetensors")


def save_clip(folder: Path, kind: Any, suffix: str = "", width: int = WIDTH) -> None:
    """A text encoder of two heads and three layers, and its tokenizer."""
    kind(CLIPTextConfig(**{**TEXT_TOWER, "hidden_size": width})).save_pretrained(folder / f"text_encoder{suffix}")
    save_clip_tokenizer(folder / f"tokenizer{suffix}")


def save_clip_model(folder: Path) -> None:
    """Text and image side together, as they score images of 32 x 32 pixels; larger and smaller ones are resized."""
    vision = {**TOWER, "image_size": 32, "patch_size": 16}
    CLIPModel(CLIPConfig(text_config=TEXT_TOWER, vision_config=vision, projection_dim=PROJECTED)).save_pretrained(folder)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    CLIPImageProcessor(**size).save_pretrained(folder)
    save_clip_tokenizer(folder)


def save_clip_tokenizer(folder: Path) -> None:
    """As OpenAI's CLIP has it: byte pairs, of which this one merges those of "cat"."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: number for number, token in enumerate(VOCABULARY)}))
    (folder / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n")
    special = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    about = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))


def save_t5(folder: Path) -> None:
    """A T5 encoder of two layers, and a tokenizer in SentencePiece's own format, as published."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([prompt.lower() for prompt in PROMPTS] * 4),
        model_writer=written,
        vocab_size=20,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "spiece.model").write_bytes(written.getvalue())
    about = {"tokenizer_class": "T5Tokenizer", "model_max_length": 512, "extra_ids": 4}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(about))
    sizes = {"d_model": WIDTH, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 2}
    T5EncoderModel(T5Config(vocab_size=32, **sizes)).save_pretrained(folder / "text_encoder")
