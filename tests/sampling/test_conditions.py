import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qdexp.config import Protocol
from qdexp.errors import UserError
from qdexp.sampling.conditions import Asked, Classes, Conditions, flatten, unflatten

CPU = torch.device("cpu")


class Labelled(nn.Module):
    """eps = label x_t + t."""

    def forward(self, x_t: Tensor, t: Tensor, class_labels: Tensor) -> tuple[Tensor]:
        return (class_labels.view(-1, 1, 1, 1) * x_t + t.view(-1, 1, 1, 1),)


def labels(asked: Asked) -> list[list[int]]:
    return [branch["class_labels"].tolist() for branch in asked.branches]


@pytest.fixture
def guided(ddim: Protocol) -> Protocol:
    return replace(ddim, guidance=3.0)


def test_sample_i_is_asked_for_class_i_modulo_their_number(ddim: Protocol, guided: Protocol) -> None:
    conditions = Classes(4, empty=4).encode(ddim, CPU)
    assert labels(conditions.of(range(2, 8), CPU)) == [[2, 3, 0, 1, 2, 3]]
    chosen = Classes(4, empty=4).encode(replace(guided, classes=[3, 1]), CPU)
    assert labels(chosen.of([0, 1, 2, 7], CPU)) == [[3, 1, 3, 1], [4, 4, 4, 4]]


def test_guidance_is_the_formula(guided: Protocol) -> None:
    x_t, t = torch.randn(3, 1, 2, 2), torch.tensor([5, 6, 7])
    eps = Classes(3, empty=9).encode(guided, CPU).of([0, 1, 2], CPU).estimate(Labelled(), x_t, t)
    asked, empty = (torch.tensor(c).view(3, 1, 1, 1) * x_t + t.view(3, 1, 1, 1) for c in ([0, 1, 2], [9, 9, 9]))
    torch.testing.assert_close(eps, empty + 3 * (asked - empty))


def test_without_guidance_the_network_is_called_once(ddim: Protocol) -> None:
    conditions = Classes(3, empty=9).encode(ddim, CPU)
    assert conditions.branches == len(conditions.of([0], CPU).branches) == 1
    assert Conditions.none().of([0, 1], CPU) == Asked()


def test_conditions_survive_their_file_with_dicts_inside(tmp_path: Path) -> None:
    asked: dict[str, Any] = {"text": torch.randn(3, 2), "added": {"ids": torch.arange(3), "deep": {"x": torch.ones(3, 1)}}}
    empty: dict[str, Any] = {"text": torch.zeros(1, 2), "added": {"ids": torch.tensor([7]), "deep": {"x": torch.zeros(1, 1)}}}
    Conditions(asked, empty).save(tmp_path)
    one, other = Conditions.load(tmp_path, guidance=2.0).of([2, 3], CPU).branches
    assert torch.equal(one["text"], asked["text"][[2, 0]])
    assert one["added"]["ids"].tolist() == [2, 0]
    assert other["added"]["ids"].tolist() == [7, 7]
    assert other["added"]["deep"]["x"].shape == (2, 1)
    assert unflatten(flatten(asked, "a."), "a.")["added"]["deep"]["x"] is asked["added"]["deep"]["x"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": [0, 3]}, r"protocol\.classes=\[0, 3\]: choose from 0 to 2"),
        ({"guidance": 2.0}, r"protocol\.guidance=2\.0: the model has no label for no class"),
        ({"prompts": "a.txt"}, r"protocol\.prompts=a\.txt: the model draws classes"),
    ],
)
def test_what_a_model_cannot_be_asked_for(ddim: Protocol, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        Classes(3).check(replace(ddim, **change))


def test_a_guidance_of_one_is_exactly_the_conditional_noise(guided: Protocol) -> None:
    x_t, t = torch.full((1, 1, 1, 1), math.pi), torch.tensor([3])
    branches = Classes(3, empty=9).encode(guided, CPU).of([2], CPU).branches
    assert torch.equal(Asked(branches[:1]).estimate(Labelled(), x_t, t), 2 * x_t + 3)
