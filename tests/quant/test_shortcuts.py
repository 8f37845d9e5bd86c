import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel
from diffusers.models.resnet import ResnetBlock2D
from omegaconf import OmegaConf
from quant_helpers import quantized
from torch import Tensor, nn

from qdexp.errors import UserError
from qdexp.paths import conf_folder
from qdexp.quant.shortcuts import Concatenation, chosen_sizes, concatenations

DIRECT, THROUGH = Concatenation((2, 6), direct=True), Concatenation((2, 6), direct=False)


def example(*shape: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    return torch.randn(1, *shape, device=device), torch.zeros(1, dtype=torch.int64, device=device)


def conditional(device: str = "cpu") -> tuple[nn.Module, tuple[Tensor, ...]]:
    with torch.device(device):
        network = UNet2DConditionModel(
            sample_size=8,
            layers_per_block=2,
            block_out_channels=(8, 16),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            resnet_time_scale_shift="scale_shift",
            norm_num_groups=4,
            cross_attention_dim=8,
            attention_head_dim=4,
        )
    return network, (*example(4, 8, 8, device=device), torch.randn(1, 3, 8, device=device))


def embedded(device: str) -> tuple[nn.Module, tuple[Tensor, ...]]:
    arguments: Any = OmegaConf.to_container(OmegaConf.load(conf_folder() / "model" / "ddpm_fashion.yaml").network)
    with torch.device(device):
        network = UNet2DModel(**{name: value for name, value in arguments.items() if name != "_target_"})
    return network, example(1, 28, 28, device=device)


def channels_that_up_blocks_join(network: Any, inputs: tuple[Tensor, ...]) -> dict[str, tuple[int, int]]:
    """By the name of a residual block, from what the network hands to its up blocks: slow, and for diffusers only."""
    joined: dict[str, tuple[int, int]] = {}

    def look(level: int, block: Any, args: Any, kwargs: Any) -> None:
        given = inspect.signature(block.forward).bind(*args, **kwargs).arguments
        deep, skips = given["hidden_states"].shape[1], list(given["res_hidden_states_tuple"])
        for index, resnet in enumerate(block.resnets):
            joined[f"up_blocks.{level}.resnets.{index}"] = deep, skips.pop().shape[1]
            deep = resnet.out_channels

    for level, block in enumerate(network.up_blocks):
        block.register_forward_pre_hook(lambda *given, level=level: look(level, *given), with_kwargs=True)
    network(*inputs)
    return joined


@pytest.mark.parametrize("kind", ["unconditional", "conditional"])
def test_boundaries_are_where_the_up_blocks_join(tiny_unet: UNet2DModel, kind: str) -> None:
    network, inputs = (tiny_unet, example(1, 8, 8)) if kind == "unconditional" else conditional()
    found = concatenations(network, inputs)
    joined = channels_that_up_blocks_join(network, inputs)
    assert len(set(joined.values())) == 3, "parts of unequal widths are among them"
    expected = {}
    for name, sizes in joined.items():
        expected[f"{name}.conv1"] = Concatenation(sizes, direct=False)
        expected[f"{name}.conv_shortcut"] = Concatenation(sizes, direct=True)
    assert list(found.items()) == list(expected.items())


def test_the_embedded_model_has_nine_shortcuts_of_equal_parts() -> None:
    found = concatenations(*embedded("meta"))
    names = [f"up_blocks.{level}.resnets.{index}" for level in range(3) for index in range(3)]
    assert {name for name, read in found.items() if read.direct} == {f"{name}.conv_shortcut" for name in names}
    assert {name for name, read in found.items() if not read.direct} == {f"{name}.conv1" for name in names}
    assert {read.sizes for read in found.values()} == {(48, 48)}


def test_no_memory_is_needed() -> None:
    assert concatenations(*embedded("meta")) == concatenations(*embedded("cpu"))
    assert concatenations(*conditional("meta")) == concatenations(*conditional())


def test_a_transformer_has_none() -> None:
    network = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=4,
        in_channels=4,
        num_layers=2,
        sample_size=8,
        norm_num_groups=4,
        num_embeds_ada_norm=10,
    )
    assert concatenations(network, (*example(4, 8, 8), torch.zeros(1, dtype=torch.int64))) == {}


def test_quantized_layers_read_the_same_and_no_hook_stays(tiny_unet: UNet2DModel) -> None:
    before = concatenations(tiny_unet, example(1, 8, 8))
    assert before
    splits = {name: read.sizes for name, read in before.items()}
    assert concatenations(quantized(tiny_unet, 4, 8, splits=splits), example(1, 8, 8)) == before
    assert not any(module._forward_pre_hooks for module in tiny_unet.modules())


class Reader(nn.Module):
    """`between` lies between the input, [1, 8, 4, 4], and one convolution."""

    def __init__(self, between: Callable[[Tensor], Tensor], conv: nn.Module | None = None) -> None:
        super().__init__()
        self.between, self.conv = between, conv or nn.LazyConv2d(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(self.between(x))
        return y


def parts(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[:, :2], x[:, 2:]


def joined(x: Tensor) -> Tensor:
    return torch.cat(parts(x), dim=1)


NORM = nn.GroupNorm(4, 8)
BETWEEN: dict[str, tuple[Callable[[Tensor], Tensor], Concatenation | None]] = {
    "nothing": (joined, DIRECT),
    "negative": (lambda x: torch.cat(parts(x), -3), DIRECT),
    "concat": (lambda x: torch.concat(parts(x), dim=1), DIRECT),
    "axis": (lambda x: torch.concatenate(parts(x), axis=1), DIRECT),  # type: ignore[call-arg]
    "three": (lambda x: torch.cat([x[:, :1], *parts(x[:, 1:])], 1), Concatenation((1, 2, 5), direct=True)),
    "nested": (lambda x: torch.cat([joined(x), x], 1), Concatenation((2, 6, 8), direct=True)),
    "empty part": (lambda x: torch.cat([x[:, :2], x[:, :0], x[:, 2:]], 1), DIRECT),
    "one part": (lambda x: torch.cat([x], 1), None),
    "rows": (lambda x: torch.cat([x, x], 0), None),
    "height": (lambda x: torch.cat([x, x], 2), None),
    "width": (lambda x: torch.cat([x, x], -1), None),
    "embedding": (lambda x: torch.cat([x.flatten(1), x.flatten(1)], 1).view(1, -1, 4, 4), None),
    "memory": (lambda x: joined(x).contiguous(memory_format=torch.channels_last).clone(), DIRECT),
    "dtype": (lambda x: joined(x).half().to(torch.bfloat16).float(), DIRECT),
    "dropout": (lambda x: F.dropout(joined(x), 0.1, training=False), DIRECT),
    "upsampled": (lambda x: F.interpolate(joined(x), scale_factor=2.0), DIRECT),
    "downsampled": (lambda x: F.avg_pool2d(joined(x), 2), DIRECT),
    "norm": (lambda x: NORM(joined(x)), THROUGH),
    "norm, upsampled": (lambda x: F.interpolate(F.silu(NORM(joined(x))), scale_factor=2.0), THROUGH),
    "silu in place": (lambda x: F.silu(joined(x), inplace=True), THROUGH),
    "gelu": (lambda x: nn.GELU()(joined(x)), THROUGH),
    "added to": (lambda x: joined(x) + x, None),
    "added to in place": (lambda x: joined(x).add_(x), None),
    "shuffled": (lambda x: F.pixel_shuffle(joined(x), 2), None),
    "flipped": (lambda x: joined(x).flip(1), None),
    "sliced": (lambda x: joined(x)[:, :4], None),
}


@pytest.mark.parametrize("case", BETWEEN)
def test_what_lies_between(case: str) -> None:
    between, expected = BETWEEN[case]
    found = concatenations(Reader(between), [torch.randn(1, 8, 4, 4)])
    assert found == ({} if expected is None else {"conv": expected})


@pytest.mark.parametrize("options", [{}, {"up": True}, {"down": True}, {"up": True, "kernel": "sde_vp"}])
def test_residual_blocks_that_resample(options: dict[str, Any]) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            shift = "scale_shift"
            self.block = ResnetBlock2D(
                in_channels=8, out_channels=4, temb_channels=3, groups=2, time_embedding_norm=shift, **options
            )

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            y: Tensor = self.block(joined(x), t)
            return y

    found = concatenations(Block(), [torch.randn(1, 8, 4, 4), torch.randn(1, 3)])
    assert found == {"block.conv1": THROUGH, "block.conv_shortcut": DIRECT}


def test_convolutions_of_other_kinds() -> None:
    def tokens(x: Tensor) -> Tensor:
        return joined(x.flatten(2))

    x = torch.randn(1, 8, 4, 4)
    assert concatenations(Reader(tokens, nn.Conv1d(8, 3, 1)), [x]) == {"conv": DIRECT}
    assert concatenations(Reader(joined, nn.Conv2d(8, 4, 1, groups=2)), [x]) == {}
    assert concatenations(Reader(joined, nn.Conv2d(8, 8, 3, groups=8)), [x]) == {}
    assert concatenations(Reader(lambda x: joined(x).movedim(1, -1), nn.Linear(8, 3)), [x]) == {}


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (joined, joined, {"conv": DIRECT}),
        (joined, lambda x: x, {}),
        (lambda x: x, joined, {}),
        (joined, lambda x: torch.cat([x[:, :3], x[:, 3:]], 1), {}),
        (joined, lambda x: F.silu(joined(x)), {}),
    ],
)
def test_a_convolution_that_runs_twice_must_read_the_same(first: Any, second: Any, expected: dict[str, Concatenation]) -> None:
    class Twice(Reader):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.conv(first(x)) + self.conv(second(x))
            return y

    assert concatenations(Twice(joined, nn.Conv2d(8, 3, 1)), [torch.randn(1, 8, 4, 4)]) == expected


def test_scopes(tiny_unet: UNet2DModel) -> None:
    found = concatenations(tiny_unet, example(1, 8, 8))
    skip = chosen_sizes(found, "skip")
    assert skip == {name: read.sizes for name, read in found.items() if name.endswith(".conv_shortcut")}
    both = chosen_sizes(found, "skip+conv1")
    assert both == {name: read.sizes for name, read in found.items()}
    assert 0 < len(skip) < len(both)


def test_a_split_that_finds_nothing_is_reported() -> None:
    x = torch.randn(1, 8, 4, 4)
    for between, scope in ((lambda x: x, "skip"), (lambda x: x, "skip+conv1"), (lambda x: F.silu(joined(x)), "skip")):
        with pytest.raises(UserError, match=r"^quantizer\.steps\.split\.scope=skip.*set it to off$"):
            chosen_sizes(concatenations(Reader(between), [x]), scope)
    assert chosen_sizes(concatenations(Reader(lambda x: F.silu(joined(x))), [x]), "skip+conv1") == {"conv": (2, 6)}
