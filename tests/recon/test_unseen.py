"""Networks that qdexp has never seen, learned block by block: blocks of several outputs, arguments that all rows share."""

from pathlib import Path

import pytest
import torch
from recon_helpers import pair, recon, table
from unseen import Transformer, by_hand, flux, linear, rows, sd3

from qdexp.errors import UserError
from qdexp.quant.network import quantized_layers

TABLE = 6
"""Rows of a batch: as many as the table has that the blocks of the test's transformer share."""


@pytest.mark.parametrize("product", [by_hand, linear])
def test_all_outputs_of_a_block_are_learned_from(tmp_path: Path, product: object) -> None:
    torch.manual_seed(0)
    network = Transformer(product).eval()  # type: ignore[arg-type]
    one = pair(network, [rows(TABLE), rows(TABLE), rows(TABLE)], 3, 8)
    before = {name: layer.weight_int.clone() for name, layer in quantized_layers(one.network) if layer.weight_int is not None}
    walk = one.walk(tmp_path / "weights", recon(iterations=40, heldout=4))
    walk.learn_weights(one.data)
    found = {row["block"]: row for row in table(tmp_path / "weights")}
    assert list(found) == ["first", "time", "blocks.0", "blocks.1", "last"]
    assert found["blocks.0"]["kept"] and found["blocks.0"]["learned"] < found["blocks.0"]["before"]
    after = {name: layer.weight_int for name, layer in quantized_layers(one.network) if layer.weight_int is not None}
    for name in ("blocks.0.text", "blocks.0.down"):  # the second output depends on the one, the first on the other
        assert not torch.equal(before[name], after[name]), name
    one.observe()
    one.walk(tmp_path / "scales", recon(iterations=10, heldout=4)).learn_scales(one.data)
    assert {row["block"] for row in table(tmp_path / "scales")} == set(found)


@pytest.mark.parametrize("make", [sd3, flux])
def test_transformers_of_diffusers_as_they_are(tmp_path: Path, make: object) -> None:
    torch.manual_seed(0)
    network, own = make()  # type: ignore[operator]
    one = pair(network.eval(), [own(5), own(5)], 3, 8)
    one.walk(tmp_path / "weights", recon(iterations=4, heldout=4, start="gptq")).learn_weights(one.data)
    assert len(table(tmp_path / "weights")) == len(one.blocks)
    one.observe()
    one.walk(tmp_path / "scales", recon(iterations=4, heldout=4)).learn_scales(one.data)


def test_blocks_that_do_not_run_in_one_order_are_refused_in_one_line(tmp_path: Path) -> None:
    class Turning(Transformer):
        def forward(self, x: torch.Tensor, text: torch.Tensor, timestep: torch.Tensor) -> dict[str, torch.Tensor]:
            turned = list(self.blocks)[:: 1 if timestep[0] < 500 else -1]
            y = self.first(x)
            for block in turned:
                y, _, text = block(y, text, torch.zeros(6, 16))
            return {"sample": self.last(y)}

    torch.manual_seed(0)
    early, late = ((x, torch.full((8,), t), named) for (x, _, named), t in ((rows(8), 100.0), (rows(8), 900.0)))
    one = pair(Turning(by_hand).eval(), [early, late], 3, 8)
    with pytest.raises(
        UserError, match=r"^model\.network: it never calls blocks\.1 as a module, or not with every batch"
    ) as told:
        one.walk(tmp_path).learn_weights(one.data)
    assert "\n" not in str(told.value)


def test_a_loss_beside_the_output_of_a_block_is_no_target(tmp_path: Path) -> None:
    class Routed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = torch.nn.Linear(4, 8), torch.nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            y = torch.relu(self.up(x))
            return y.mean(), self.down(y), self.up.bias

    class Mixture(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.blocks, self.last = torch.nn.Linear(4, 4), torch.nn.ModuleList([Routed()]), torch.nn.Linear(4, 4)

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.last(self.blocks[0](self.first(x))[1])
            return y

    one = pair(Mixture().eval(), [rows(6)[:2], rows(5)[:2]], 2, 8)
    one.walk(tmp_path, recon(iterations=20)).learn_weights(one.data)
    assert [row["block"] for row in table(tmp_path)] == ["first", "blocks.0", "last"]


def test_rows_folded_with_tokens_are_refused_in_one_line(tmp_path: Path) -> None:
    class Folding(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = torch.nn.Linear(4, 8), torch.nn.Linear(8, 4)

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.last(torch.relu(self.first(x.flatten(0, 1)))).unflatten(0, x.shape[:2])
            return y

    one = pair(Folding().eval(), [rows(4)[:2], rows(4)[:2]], 3, 8)
    with pytest.raises(UserError, match=r"^model\.network: first returns no tensor that has an entry for each row"):
        one.walk(tmp_path).learn_weights(one.data)
