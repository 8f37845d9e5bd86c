import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from qdexp import files
from qdexp.sampling.conditions import EMPTY, PIECE, Asked, Conditions, estimate_noise, flatten, piece_path, unflatten

CPU = torch.device("cpu")


class Labelled(nn.Module):
    """eps = label x_t + t."""

    def forward(self, x_t: Tensor, t: Tensor, class_labels: Tensor) -> tuple[Tensor]:
        return (class_labels.view(-1, 1, 1, 1) * x_t + t.view(-1, 1, 1, 1),)


def conditions(*classes: int, empty: int = 9, guidance: float = 1.0) -> Conditions:
    return Conditions([{"class_labels": torch.tensor(classes)}], {"class_labels": torch.tensor([empty])}, guidance)


def labels(asked: Asked) -> list[list[int]]:
    return [branch["class_labels"].tolist() for branch in asked.branches]


def test_sample_i_is_asked_for_condition_i_modulo_their_number() -> None:
    assert labels(conditions(0, 1, 2, 3).of(range(2, 8), CPU)) == [[2, 3, 0, 1, 2, 3]]
    assert labels(conditions(3, 1, empty=4, guidance=3.0).of([0, 1, 2, 7], CPU)) == [[3, 1, 3, 1], [4, 4, 4, 4]]


def test_guidance_is_the_formula() -> None:
    x_t, t = torch.randn(3, 1, 2, 2), torch.tensor([5, 6, 7])
    eps = conditions(0, 1, 2, guidance=3.0).of([0, 1, 2], CPU).estimate(Labelled(), x_t, t)
    asked, empty = (torch.tensor(c).view(3, 1, 1, 1) * x_t + t.view(3, 1, 1, 1) for c in ([0, 1, 2], [9, 9, 9]))
    torch.testing.assert_close(eps, empty + 3 * (asked - empty))


class TextFirst(nn.Module):
    """Takes its timestep third; returns the noise and a variance, in whatever ``pack`` makes of them."""

    def __init__(self, pack: Any) -> None:
        super().__init__()
        self.pack = pack

    def forward(self, x_t: Tensor, text: Tensor, timestep: Tensor) -> Any:
        eps = x_t + text.view(-1, 1, 1, 1) * timestep.view(-1, 1, 1, 1)
        return self.pack(torch.cat([eps, torch.ones_like(eps)], dim=1))


@pytest.mark.parametrize(
    "pack",
    [
        lambda x: x,
        lambda x: (x, None),
        lambda x: {"sample": x, "more": None},
        lambda x: UNet2DOutput(sample=x),
        lambda x: Transformer2DModelOutput(sample=x),
    ],
)
def test_a_network_is_called_by_the_name_of_its_timestep_and_returns_what_it_likes(pack: Any) -> None:
    x_t, t, text = torch.randn(2, 3, 4, 4), torch.tensor([5, 6]), torch.tensor([2.0, 3.0])
    network = TextFirst(pack)
    expected = x_t + torch.tensor([10.0, 18.0]).view(-1, 1, 1, 1)
    compiled: Any = torch.compile(network, backend="eager")
    for called in (network, compiled):
        assert torch.equal(estimate_noise(called, x_t, t, text=text), expected)


def test_without_guidance_the_network_is_called_once() -> None:
    once = conditions(0, 1, 2)
    assert once.branches == len(once.of([0], CPU).branches) == 1
    assert Conditions.none().of([0, 1], CPU) == Asked()


def test_conditions_come_from_their_files_with_dicts_inside(tmp_path: Path) -> None:
    count = 2 * PIECE + 3
    asked: dict[str, Any] = {
        "text": torch.randn(count, 2),
        "added": {"ids": torch.arange(count), "deep": {"x": torch.ones(count, 1)}},
    }
    empty: dict[str, Any] = {"text": torch.zeros(1, 2), "added": {"ids": torch.tensor([7]), "deep": {"x": torch.zeros(1, 1)}}}
    for number, start in enumerate(range(0, count, PIECE)):
        piece = pytree.tree_map(lambda rows, start=start: rows[start : start + PIECE], asked)
        files.write_tensors(piece_path(tmp_path, number), flatten(piece))
    files.write_tensors(tmp_path / EMPTY, flatten(empty))
    one, other = Conditions.load(tmp_path, guidance=2.0).of([2, count, PIECE, count - 1], CPU).branches
    assert torch.equal(one["text"], asked["text"][[2, 0, PIECE, count - 1]])
    assert one["added"]["ids"].tolist() == [2, 0, PIECE, count - 1]
    assert other["added"]["ids"].tolist() == [7, 7, 7, 7]
    assert other["added"]["deep"]["x"].shape == (4, 1)
    assert unflatten(flatten(asked, "a."), "a.")["added"]["deep"]["x"] is asked["added"]["deep"]["x"]


def test_a_guidance_of_one_is_exactly_the_conditional_noise() -> None:
    x_t, t = torch.full((1, 1, 1, 1), math.pi), torch.tensor([3])
    branches = conditions(0, 1, 2, guidance=3.0).of([2], CPU).branches
    assert torch.equal(Asked(branches[:1]).estimate(Labelled(), x_t, t), 2 * x_t + 3)


def test_pieces_before_the_last_are_full() -> None:
    with pytest.raises(AssertionError):
        Conditions([{"class_labels": torch.arange(2)}] * 2, {})
