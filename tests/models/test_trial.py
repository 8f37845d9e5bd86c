"""What is known of a network before any work: whether it can be called, and returns noise."""

from typing import Any

import pytest
import torch
from families import FAMILIES, Family
from torch import Tensor, nn

from qdexp.config import Model
from qdexp.errors import UserError
from qdexp.models import trial


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x_t: Tensor, t: Tensor) -> Any:
        return self.layer(x_t)


class Named(Plain):
    def forward(self, x_t: Tensor, t: Tensor) -> Any:
        return {"sample": self.layer(x_t), "other": None}


class Variance(Plain):
    def forward(self, x_t: Tensor, t: Tensor) -> Any:
        return (self.layer(x_t).repeat(1, 2, 1, 1),)


class Volumes(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv3d(1, 1, (1, 3, 3), padding=(0, 1, 1))  # type: ignore[assignment]

    def forward(self, x_t: Tensor, t: Tensor) -> Any:
        return self.layer(x_t[:, :, None])[:, :, 0]


class Values(Plain):
    """Cannot run on shapes alone."""

    def forward(self, x_t: Tensor, t: Tensor) -> Any:
        return self.layer(x_t) if int(t[0]) >= 0 else None


class Nothing(nn.Module):
    """Has no parameter."""

    def forward(self, x_t: Tensor, t: Tensor) -> Any:
        return x_t


class Raises(Plain):
    def forward(self, x_t: Tensor, t: Tensor) -> Any:
        raise ValueError("not\ntoday")


class Labelled(Plain):
    def forward(self, x_t: Tensor, t: Tensor, y: Tensor) -> Any:  # type: ignore[override]
        return self.layer(x_t) + y


class Coloured(Plain):
    def forward(self, x_t: Tensor, t: Tensor) -> Any:
        return self.layer(x_t).repeat(1, 3, 1, 1)


class Smaller(Plain):
    def forward(self, x_t: Tensor, t: Tensor) -> Any:
        return self.layer(x_t)[..., 1:]


class Silent(Plain):
    def forward(self, x_t: Tensor, t: Tensor) -> Any:
        return None


class Empty(Plain):
    def forward(self, x_t: Tensor, t: Tensor) -> Any:
        return {}


class Levels(Plain):
    def forward(self, x_t: Tensor, t: Tensor) -> Any:
        return self.layer(x_t).to(torch.uint8)


def model(kind: type, **more: Any) -> Model:
    return Model("mine", "random", [1, 9, 8], {"_target_": f"{__name__}.{kind.__name__}"}, {}, **more)


@pytest.mark.parametrize("kind", [Plain, Named, Variance, Volumes, Values, Nothing])
def test_a_network_that_can_be_called(kind: type) -> None:
    trial.check(model(kind))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_family_passes(family: Family) -> None:
    trial.check(family.model)


WRONG: dict[type, str] = {
    Raises: r"raises ValueError: not today; change model\.shape",
    Labelled: r"raises TypeError: .* 'y'; say by model\.condition what else it takes",
    Coloured: r"returns \[1, 3, 9, 8\] of torch\.float32 for x_t \[1, 1, 9, 8\]",
    Smaller: r"returns \[1, 1, 9, 7\] of torch\.float32 for x_t \[1, 1, 9, 8\]",
    Silent: r"returns NoneType for x_t \[1, 1, 9, 8\]",
    Empty: r"returns dict for x_t",
    Levels: r"returns \[1, 1, 9, 8\] of torch\.uint8",
}


@pytest.mark.parametrize("kind", WRONG, ids=lambda kind: kind.__name__)
def test_one_that_cannot_is_told_in_one_line(kind: type) -> None:
    with pytest.raises(UserError, match=rf"^model\.network: .*{WRONG[kind]}") as caught:
        trial.check(model(kind))
    assert "\n" not in str(caught.value)


def test_sides_that_a_u_net_cannot_halve(tiny_architecture: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"x_t of model\.shape, \[1, 1, 9, 8\], it raises RuntimeError: Sizes of tensors must"):
        trial.check(Model("odd", "random", [1, 9, 8], tiny_architecture, {}))


def test_what_it_takes_beside_is_as_the_model_says() -> None:
    condition = {"_target_": "qdexp.models.conditioning.Classes", "classes": 2, "name": "y"}
    trial.check(model(Labelled, condition=condition, example={"y": []}))
    trial.check(model(Labelled, condition=condition))  # of which shape it is, only the condition itself tells
    with pytest.raises(UserError, match=r"unexpected keyword argument 'z'; say by model\.condition"):
        trial.check(model(Labelled, condition=condition, example={"z": []}))


def test_what_makes_no_network() -> None:
    with pytest.raises(UserError, match=r"^model\.network\._target_=builtins\.dict: makes no torch\.nn\.Module"):
        trial.check(Model("mine", "random", [1, 9, 8], {"_target_": "builtins.dict"}, {}))
