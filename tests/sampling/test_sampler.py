import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from qdexp.config import Model, Protocol
from qdexp.errors import UserError
from qdexp.sampling.conditions import estimate_noise
from qdexp.sampling.noise import draw, generators
from qdexp.sampling.sampler import Sampler, to_images
from qdexp.sampling.shards import Recording, Sampling, Stream

CPU = torch.device("cpu")


class Plain(nn.Module):
    """A network of a user's own: it answers with a Tensor, and depends on x_t and on t."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1, bias=False)
        with torch.no_grad():
            self.conv.weight.copy_(torch.linspace(-0.3, 0.4, 9).reshape(1, 1, 3, 3))

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        answer: Tensor = torch.tanh(self.conv(x_t)) + (t / 1000).reshape(-1, 1, 1, 1) * x_t
        return answer


class Wrapped(Plain):
    def forward(self, x_t: Tensor, t: Tensor) -> Any:
        return (super().forward(x_t, t), "something else")


def alphas_bar(model: Model) -> list[float]:
    """The cumulative products of 1 - beta_t."""
    count, start, end = (model.schedule[name] for name in ("num_train_timesteps", "beta_start", "beta_end"))
    betas = [start + (end - start) * i / (count - 1) for i in range(count)]
    return [math.prod(1 - beta for beta in betas[: t + 1]) for t in range(count)]


@torch.inference_mode()
def slow_ddim(model: Model, steps: int, network: nn.Module, sample: int, eta: float) -> Tensor:
    """DDIM (Song et al. 2021, eq. 12 and 16) of one sample, in double precision; eta = 1 is the posterior of DDPM."""
    source = generators("evaluation", 0, [sample])
    bar, stride = alphas_bar(model), 1000 // steps
    x = draw(source, (1, 8, 8)).double()
    for t in reversed(range(0, 1000, stride)):
        eps = estimate_noise(network, x.float(), torch.tensor([t])).double()
        now, before = bar[t], bar[t - stride] if t >= stride else 1.0
        x_0 = (x - math.sqrt(1 - now) * eps) / math.sqrt(now)
        sigma = eta * math.sqrt((1 - before) / (1 - now) * (1 - now / before))
        x = math.sqrt(before) * x_0 + math.sqrt(1 - before - sigma**2) * eps
        if sigma > 0:
            x += sigma * draw(source, (1, 8, 8)).double()
    return x[0]


@torch.inference_mode()
def slow_dpm_solver(model: Model, timesteps: list[int] | list[float], network: nn.Module, sample: int) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, algorithm 2) of one sample, in double precision; first order at both ends."""
    bar = alphas_bar(model)
    alpha, sigma = [math.sqrt(bar[int(t)]) for t in timesteps], [math.sqrt(1 - bar[int(t)]) for t in timesteps]
    lamda = [math.log(a / s) for a, s in zip(alpha, sigma, strict=True)]
    x = draw(generators("evaluation", 0, [sample]), (1, 8, 8)).double()
    older = x
    for i, t in enumerate(timesteps):
        eps = estimate_noise(network, x.float(), torch.tensor([t])).double()
        x_0 = (x - sigma[i] * eps) / alpha[i]
        if i == len(timesteps) - 1:
            return x_0[0]  # sigma = 0 at the end: the exponential vanishes, and alpha = 1
        h, ahead = lamda[i + 1] - lamda[i], x_0
        if i > 0:
            r = (lamda[i] - lamda[i - 1]) / h
            ahead = (1 + 1 / (2 * r)) * x_0 - 1 / (2 * r) * older
        x = sigma[i + 1] / sigma[i] * x - alpha[i + 1] * math.expm1(-h) * ahead
        older = x_0
    raise AssertionError


def assert_close(value: Tensor, truth: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(value, truth, rtol=tolerance, atol=tolerance, check_dtype=False)


@torch.inference_mode()
def run(sampler: Sampler, network: nn.Module, samples: list[int]) -> Tensor:
    return sampler.run(network, generators("evaluation", 0, samples), CPU)


@pytest.fixture(params=["unet", "plain"])
def network(request: pytest.FixtureRequest, tiny_unet: UNet2DModel) -> nn.Module:
    return tiny_unet if request.param == "unet" else Plain()


@pytest.fixture
def ddpm(ddim: Protocol) -> Protocol:
    return replace(ddim, scheduler={"_target_": "diffusers.DDPMScheduler", "clip_sample": False})


def test_ddim(tiny_model: Model, ddim: Protocol, network: nn.Module) -> None:
    x_0 = run(Sampler(tiny_model, ddim), network, [0, 1, 2])
    for sample in range(3):
        assert_close(x_0[sample], slow_ddim(tiny_model, 5, network, sample, eta=0))


def test_a_stochastic_sampler_takes_each_sample_s_own_noise(tiny_model: Model, ddpm: Protocol, network: nn.Module) -> None:
    x_0 = run(Sampler(tiny_model, ddpm), network, [0, 1, 2])
    for sample in range(3):
        assert_close(x_0[sample], slow_ddim(tiny_model, 5, network, sample, eta=1))


def test_dpm_solver(tiny_model: Model, solver: Protocol, network: nn.Module) -> None:
    sampler = Sampler(tiny_model, solver)
    x_0 = run(sampler, network, [0, 1, 2])
    for sample in range(3):
        assert_close(x_0[sample], slow_dpm_solver(tiny_model, sampler.timesteps, network, sample), tolerance=1e-3)


@pytest.mark.parametrize("name", ["ddim", "ddpm", "solver"])
def test_a_sample_is_the_same_alone_and_in_a_batch(tiny_model: Model, tiny_unet: UNet2DModel, name: str, request: Any) -> None:
    sampler = Sampler(tiny_model, request.getfixturevalue(name))
    together = run(sampler, tiny_unet, [4, 5, 6])
    for row, sample in enumerate([4, 5, 6]):
        assert_close(run(sampler, tiny_unet, [sample])[0], together[row])


@pytest.mark.parametrize("name", ["ddim", "ddpm", "solver"])
def test_nothing_is_left_over_from_batch_to_batch(tiny_model: Model, tiny_unet: UNet2DModel, name: str, request: Any) -> None:
    protocol = request.getfixturevalue(name)
    sampler = Sampler(tiny_model, protocol)
    first = run(sampler, tiny_unet, [0, 1])
    run(sampler, Plain(), [7, 8, 9])
    assert torch.equal(run(sampler, tiny_unet, [0, 1]), first)
    assert torch.equal(run(Sampler(tiny_model, protocol), tiny_unet, [0, 1]), first)


@pytest.mark.parametrize(
    ("scheduler", "steps", "named"),
    [
        ("diffusers.DDIMScheduler", 1001, "protocol.steps=1001"),
    ],
)
def test_a_walk_of_other_steps_is_refused(tiny_model: Model, ddim: Protocol, scheduler: str, steps: int, named: str) -> None:
    with pytest.raises(UserError, match=named):
        Sampler(tiny_model, replace(ddim, scheduler={"_target_": scheduler}, steps=steps))


def test_what_the_network_and_the_observer_see(tiny_model: Model, solver: Protocol) -> None:
    calls: list[tuple[Tensor, Tensor]] = []
    seen: list[tuple[int, Tensor, Tensor]] = []

    class Noting(Plain):
        def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
            calls.append((x_t, t))
            return super().forward(x_t, t)

    sampler, network = Sampler(tiny_model, solver), Noting()
    with torch.inference_mode():
        sampler.run(network, generators("evaluation", 0, range(2)), CPU, observe=lambda *step: seen.append(step))
    assert [position for position, _, _ in seen] == list(range(5)) == list(range(sampler.steps))
    assert [t.tolist() for _, t in calls] == [[t, t] for t in sampler.timesteps]
    assert all(t.dtype == torch.int64 for _, t in calls)
    assert sampler.timesteps == sorted(sampler.timesteps, reverse=True)
    assert torch.equal(calls[0][0], draw(generators("evaluation", 0, range(2)), (1, 8, 8)))
    for (x_t, t), (_, observed, eps) in zip(list(calls), seen, strict=True):
        assert torch.equal(x_t, observed)
        with torch.inference_mode():
            assert torch.equal(eps, network(x_t, t))


def test_the_first_element_is_the_noise() -> None:
    x_t, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 900])
    assert torch.equal(estimate_noise(Wrapped(), x_t, t), estimate_noise(Plain(), x_t, t))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["ddim", "solver"])
def test_samples_that_are_not_finite_are_no_samples(tiny_model: Model, name: str, request: Any, value: float) -> None:
    class Overflowing(Plain):
        def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
            return super().forward(x_t, t).index_fill(0, torch.tensor([1]), value)

    sampler = Sampler(tiny_model, request.getfixturevalue(name))
    for kind, made in ((Sampling, "images"), (Recording, "eps")):
        with torch.inference_mode():
            assert len(kind(Plain(), sampler, Stream("evaluation", 0, 3, 3))(0)[made]) == 3
        refused = pytest.raises(UserError, match=r"^model\.network: .*not finite; look into model\.weights, .*more bits$")
        with torch.inference_mode(), refused:
            kind(Overflowing(), sampler, Stream("evaluation", 0, 3, 3))(0)


def test_images() -> None:
    levels = torch.arange(256) / 127.5 - 1
    assert torch.equal(to_images(levels), torch.arange(256).to(torch.uint8))
    values = torch.tensor([-7.0, -1.0, -0.999, -0.0, 0.003, 0.999, 1.0, 1.5])
    assert to_images(values).tolist() == [0, 0, 0, 128, 128, 255, 255, 255]


def test_truncated_images_are_those_of_latent_diffusions_scripts() -> None:
    values = torch.rand(10_000) * 2.4 - 1.2
    theirs = ((values + 1) * 127.5).clamp(0, 255).to(torch.uint8)
    assert torch.equal(to_images(values, "truncate"), theirs)
    inside = values.abs() < 1
    darker = to_images(values)[inside].int() - theirs[inside].int()
    assert darker.unique().tolist() == [0, 1] and darker.float().mean() == pytest.approx(0.5, abs=0.02)
