"""Models of the user's own that are asked for something: a diffusion transformer, a U-Net with cross-attention, and a network
of diffusers that no config of ours names."""

from pathlib import Path

MODEL = """\
name: {name}
weights: random
shape: [1, 28, 28]
schedule: {{num_train_timesteps: 1000, beta_schedule: linear, beta_start: 0.0001, beta_end: 0.02}}
condition: {{_target_: qdexp.models.conditioning.Classes, classes: 3, empty: 3}}
network:
  sample_size: 28
  in_channels: 1
"""
NETWORKS = {
    "tiny_dit": """\
  _target_: diffusers.DiTTransformer2DModel
  patch_size: 4
  num_layers: 2
  num_attention_heads: 2
  attention_head_dim: 4
  num_embeds_ada_norm: 3
""",
    "tiny_cross": """\
  _target_: qdexp.models.networks.ClassUNet2DConditionModel
  num_classes: 4
  out_channels: 1
  layers_per_block: 1
  block_out_channels: [8, 8]
  down_block_types: [DownBlock2D, CrossAttnDownBlock2D]
  up_block_types: [CrossAttnUpBlock2D, UpBlock2D]
  mid_block_type: null
  norm_num_groups: 4
  attention_head_dim: 2
  cross_attention_dim: 6
""",
}

STABLE_DIFFUSION_3 = """\
name: tiny_sd3
weights: random
shape: [1, 28, 28]
schedule: {num_train_timesteps: 1000, shift: 3.0, prediction_type: flow_prediction}
condition: {_target_: texts.MadeUpTexts, tokens: 5, width: 6, pooled: 4}
example: {encoder_hidden_states: [5, 6], pooled_projections: [4]}
network:
  _target_: diffusers.SD3Transformer2DModel
  sample_size: 28
  patch_size: 4
  in_channels: 1
  out_channels: 1
  num_layers: 2
  num_attention_heads: 2
  attention_head_dim: 4
  joint_attention_dim: 6
  caption_projection_dim: 8
  pooled_projection_dim: 4
  pos_embed_max_size: 7
"""


def write_models(conf: Path) -> None:
    """Their YAMLs, in a config folder."""
    (conf / "model").mkdir(parents=True)
    for name, network in NETWORKS.items():
        (conf / "model" / f"{name}.yaml").write_text(MODEL.format(name=name) + network)
    (conf / "model" / "tiny_sd3.yaml").write_text(STABLE_DIFFUSION_3)
