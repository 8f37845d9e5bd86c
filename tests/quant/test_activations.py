import pytest
import torch
from quant_helpers import observed, qparams_of

from qdexp.quant import MinMax, NormSearch, RangeEstimator, Scheme, Split, fake_quantize
from qdexp.quant.activations import ActivationQuantizer, elementwise, quantizer_or_identity


def test_observation_passes_values_through_and_then_rounds() -> None:
    quantizer, x = ActivationQuantizer(Scheme(2)), torch.randn(2, 5)
    assert torch.equal(quantizer(x), x)
    stream = quantizer.start(MinMax())
    assert torch.equal(quantizer(x[:1]), x[:1])
    assert torch.equal(quantizer(x[1:]), x[1:])
    stream.end_pass()
    quantizer.finish()
    assert torch.equal(quantizer(x), fake_quantize(x, qparams_of(x, Scheme(2)), Scheme(2)))
    assert quantizer(x).unique().numel() <= 4


@pytest.mark.parametrize("estimator", [MinMax(), NormSearch()])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("sizes", [(3, 5), (2, 1, 5)])
def test_the_parts_of_a_split_input_are_quantized_as_if_alone(
    estimator: RangeEstimator, symmetric: bool, sizes: tuple[int, ...]
) -> None:
    x = torch.randn(6, 8, 5, 5) * torch.logspace(-2, 2, 8).view(8, 1, 1)
    split = observed(Scheme(6, Split(sizes), symmetric), estimator, list(x.split(2)))
    assert split.scale.shape == split.zero_point.shape == (len(sizes),)
    alone = [observed(Scheme(6, symmetric=symmetric), estimator, list(part.split(2)))(part) for part in x.split(sizes, dim=1)]
    assert torch.equal(split(x), torch.cat(alone, dim=1))


@pytest.mark.parametrize("bits", [8, 16])
def test_a_fixed_range_needs_no_observation(bits: int) -> None:
    quantizer = ActivationQuantizer(Scheme(bits), fixed_range=(0.0, 1.0))
    quantizer.mode = "on"
    x = torch.rand(1000)
    assert quantizer.zero_point.item() == 0
    assert torch.allclose(quantizer(x), torch.round(x * (2**bits - 1)) / (2**bits - 1), atol=1e-6)


def test_gradients_pass_through_a_grid_that_is_not_learned() -> None:
    """Such as the softmax's: what comes before it may be learned."""
    quantizer = ActivationQuantizer(Scheme(8), fixed_range=(0.0, 1.0))
    quantizer.mode = "on"
    x = torch.tensor([-0.3, 0.2, 0.7, 1.4], requires_grad=True)
    y = quantizer(x)
    assert torch.equal(y, quantizer(x.detach()))
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 0]


def test_what_treats_elements_alone() -> None:
    """Slices of a tensor come out as of the whole."""
    assert elementwise(quantizer_or_identity(None))
    for scheme, alone in ((Scheme(8), True), (Scheme(8, time="dynamic"), False), (Scheme(8, Split((2, 3))), False)):
        quantizer = ActivationQuantizer(scheme)
        assert elementwise(quantizer)  # it is off
        quantizer.mode = "on"
        assert elementwise(quantizer) == alone
        x = torch.randn(4, 5) * torch.tensor([1.0, 2, 4, 8])[:, None]
        if alone:
            quantizer = observed(scheme, MinMax(), [x])
            assert torch.equal(quantizer(x), torch.cat([quantizer(row) for row in x.split(1)]))
            quantizer.scale.requires_grad_()
            assert not elementwise(quantizer)  # what it learns is a sum over all of them
