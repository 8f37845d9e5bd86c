import pytest
import torch

from qdexp.errors import UserError
from qdexp.quant import PerChannel, Scheme, dequantize, qparams_from_range
from qdexp.quant.rounding import nearest, resolve


def test_nearest_finds_the_nearest_level() -> None:
    scheme = Scheme(3, PerChannel())
    weight = torch.randn(4, 5, 3, 3)
    qparams = qparams_from_range(*scheme.granularity.pieces(weight)[0].aminmax(dim=1), scheme)
    chosen = (dequantize(nearest(weight, qparams, scheme), qparams, scheme) - weight).abs()
    for level in range(scheme.qmin, scheme.qmax + 1):
        other = (dequantize(torch.full(weight.shape, level), qparams, scheme) - weight).abs()
        assert (chosen <= other + 1e-6).all()


def test_resolve() -> None:
    assert resolve("nearest") is nearest
    assert resolve("qdexp.quant.rounding.nearest") is nearest


@pytest.mark.parametrize("name", ["neerest", "qdexp.quant.rounding.neerest", "no_such_package.f", ""])
def test_unknown_names_are_reported(name: str) -> None:
    with pytest.raises(UserError, match="nearest"):
        resolve(name)
