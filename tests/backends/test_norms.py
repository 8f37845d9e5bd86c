"""Group norms of channels-last images against torch's."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from qdexp.backends.integer import norms
from qdexp.backends.integer.norms import quicken


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(3, 12, 5, 7), (1, 12, 1, 1), (3, 12, 7)])
def test_what_torch_computes(affine: bool, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(norms, "LEAST", 1)
    plain = nn.GroupNorm(4, 12, affine=affine)
    if affine:
        nn.init.normal_(plain.weight)
        nn.init.normal_(plain.bias)
    x = torch.randn(shape) * 3 + 2
    x = x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
    quick = nn.Sequential(deepcopy(plain))
    quicken(quick)
    y = quick(x)
    torch.testing.assert_close(y, plain(x), rtol=1e-5, atol=1e-5)
    assert y.stride() == x.stride()


def test_a_mean_far_from_zero_loses_no_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LEAST", "PIECE"):
        monkeypatch.setattr(norms, name, 1)
    quick = nn.Sequential(nn.GroupNorm(4, 12))
    exact = deepcopy(quick).double()
    quicken(quick)
    x = (torch.randn(3, 12, 8, 8) + 1000).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(quick(x).double(), exact(x.double()), rtol=0, atol=2e-3)  # x itself has last bits of 6e-5


def test_other_norms_are_left() -> None:
    class Own(nn.GroupNorm):
        pass

    network = nn.Sequential(Own(2, 4), nn.LayerNorm(4))
    quicken(network)
    assert [type(module) for module in network] == [Own, nn.LayerNorm]
