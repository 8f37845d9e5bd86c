"""What published folders of the models in conf/model say of themselves, as far as it is known: file -> names and values.

Values as their files have them, of several versions of diffusers where there are several.
"""

from typing import Any

Folder = dict[str, dict[str, Any]]

KL: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
DDPM: dict[str, Any] = {
    "_class_name": "UNet2DModel",
    "_diffusers_version": "0.0.4",
    "act_fn": "silu",
    "attention_head_dim": None,
    "block_out_channels": [128, 256, 256, 256],
    "center_input_sample": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "in_channels": 3,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 32,
    "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}
DDPM_256: dict[str, Any] = {
    **DDPM,
    "block_out_channels": [128, 128, 256, 256, 512, 512],
    "down_block_types": ["DownBlock2D"] * 4 + ["AttnDownBlock2D", "DownBlock2D"],
    "sample_size": 256,
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D"] + ["UpBlock2D"] * 4,
}
DDPM_SCHEDULE: dict[str, Any] = {
    "_class_name": "DDPMScheduler",
    "_diffusers_version": "0.1.1",
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "clip_sample": True,
    "num_train_timesteps": 1000,
    "trained_betas": None,
    "variance_type": "fixed_large",
}
SD_FLAX: dict[str, Any] = {
    "_class_name": "FlaxUNet2DConditionModel",
    "_diffusers_version": "0.5.0.dev0",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "dropout": 0.1,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
SD_0_6: dict[str, Any] = {
    **SD_FLAX,
    "_class_name": "UNet2DConditionModel",
    "_name_or_path": "stable-diffusion-v1-5/unet",
    "act_fn": "silu",
    "center_input_sample": False,
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "sample_size": 32,
}
SD_0_17: dict[str, Any] = {
    **SD_0_6,
    "_diffusers_version": "0.17.0.dev0",
    "addition_embed_type": None,
    "addition_embed_type_num_heads": 64,
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "mid_block_only_cross_attention": None,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "num_class_embeds": None,
    "only_cross_attention": False,
    "projection_class_embeddings_input_dim": None,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "sample_size": 64,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
    "upcast_attention": None,
    "use_linear_projection": False,
}
PNDM: dict[str, Any] = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.4.0.dev0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}
SD_2_1: dict[str, Any] = {
    **SD_0_6,
    "_diffusers_version": "0.10.0.dev0",
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "dual_cross_attention": False,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "sample_size": 96,
    "upcast_attention": True,
    "use_linear_projection": True,
}
DDIM_V: dict[str, Any] = {**PNDM, "_class_name": "DDIMScheduler", "clip_sample": False, "prediction_type": "v_prediction"}
XL: dict[str, Any] = {
    **SD_0_17,
    "_diffusers_version": "0.24.0.dev0",
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "attention_type": "default",
    "block_out_channels": [320, 640, 1280],
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "dropout": 0.0,
    "encoder_hid_dim_type": None,
    "num_attention_heads": None,
    "projection_class_embeddings_input_dim": 2816,
    "reverse_transformer_layers_per_block": None,
    "sample_size": 128,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "use_linear_projection": True,
}
EULER: dict[str, Any] = {
    **PNDM,
    "_class_name": "EulerDiscreteScheduler",
    "clip_sample": False,
    "interpolation_type": "linear",
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "timestep_spacing": "leading",
    "use_karras_sigmas": False,
}
DIT: dict[str, Any] = {
    "_class_name": "Transformer2DModel",
    "_diffusers_version": "0.12.0.dev0",
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "attention_head_dim": 72,
    "cross_attention_dim": None,
    "dropout": 0.0,
    "in_channels": 4,
    "norm_elementwise_affine": False,
    "norm_num_groups": 32,
    "norm_type": "ada_norm_zero",
    "num_attention_heads": 16,
    "num_embeds_ada_norm": 1000,
    "num_layers": 28,
    "num_vector_embeds": None,
    "only_cross_attention": False,
    "out_channels": 8,
    "patch_size": 2,
    "sample_size": 32,
    "upcast_attention": False,
    "use_linear_projection": False,
}
PIXART: dict[str, Any] = {
    **DIT,
    "attention_type": "default",
    "caption_channels": 4096,
    "cross_attention_dim": 1152,
    "double_self_attention": False,
    "norm_eps": 1e-06,
    "norm_type": "ada_norm_single",
    "sample_size": 64,
}
PIXART_NOW: dict[str, Any] = {
    **PIXART,
    "_class_name": "PixArtTransformer2DModel",
    "interpolation_scale": 1,
    "use_additional_conditions": False,
}
LINEAR: dict[str, Any] = {**DDPM_SCHEDULE, "clip_sample": False, "prediction_type": "epsilon"}


def pixels(config: dict[str, Any]) -> Folder:
    index = {"_class_name": "DDPMPipeline", "scheduler": ["diffusers", "DDPMScheduler"], "unet": ["diffusers", "UNet2DModel"]}
    return {"config.json": config, "scheduler_config.json": DDPM_SCHEDULE, "model_index.json": index}


def latents(network: str, config: dict[str, Any], scheduler: dict[str, Any], vae: dict[str, Any]) -> Folder:
    index = {network: ["diffusers", config["_class_name"]], "vae": ["diffusers", vae["_class_name"]]}
    scheduling = {"scheduler/scheduler_config.json": scheduler, "model_index.json": index}
    return {f"{network}/config.json": config, "vae/config.json": vae, **scheduling}


SCALED = {**KL, "scaling_factor": 0.18215}
PUBLISHED: list[tuple[str, Folder]] = [
    ("ddim_cifar10", pixels(DDPM)),
    ("ddpm_bedroom", pixels(DDPM_256)),
    ("ddpm_church", pixels(DDPM_256)),
    ("sd_v1_4", latents("unet", SD_FLAX, PNDM, {**KL, "_class_name": "FlaxAutoencoderKL"})),
    ("sd_v1_5", latents("unet", SD_0_6, PNDM, KL)),
    ("sd_v1_5", latents("unet", SD_0_17, {**PNDM, "clip_sample": False, "prediction_type": "epsilon"}, SCALED)),
    ("sd_v2_1", latents("unet", SD_2_1, DDIM_V, {**KL, "sample_size": 768})),
    ("sdxl", latents("unet", XL, EULER, {**KL, "force_upcast": True, "sample_size": 1024, "scaling_factor": 0.13025})),
    ("dit_xl_256", latents("transformer", DIT, {**LINEAR, "_class_name": "DDIMScheduler"}, {**KL, "sample_size": 256})),
    ("pixart_alpha", latents("transformer", PIXART, {**LINEAR, "_class_name": "DPMSolverMultistepScheduler"}, SCALED)),
    ("pixart_alpha", latents("transformer", PIXART_NOW, LINEAR, {**SCALED, "shift_factor": None, "latents_mean": None})),
]
