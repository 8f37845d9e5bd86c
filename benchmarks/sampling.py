"""Sampling with the quantized network against full precision: the same noise, batch and scheduler.

Full precision runs as qdexp samples with it: diffusers' own attention (a fused kernel), channels_last, inference mode.
"""

import torch

from benchmarks.subject import Subject
from benchmarks.timing import interleaved, ratios, seconds
from qdexp.sampling.noise import generators
from qdexp.sampling.sampler import Sampler

HEADER = ["sampling", "full precision, s (CPU)", "quantized, s (CPU)", "ratio", "ratio of CPU times"]


def run(subject: Subject, repetitions: int) -> list[list[str]]:
    """The row of the table. Ranges are observed on the subject's rows."""
    config, full = subject.config, subject.full()
    network, _ = subject.rounded(full)
    subject.observe(network)
    sampler, batch = Sampler(config.model, config.protocol), range(config.sampling.batch)

    @torch.inference_mode()
    def sample(net: torch.nn.Module) -> None:
        sampler.run(net, generators("evaluation", config.protocol.noise_seed, batch), subject.device)

    theirs, ours = interleaved(repetitions, subject.device, lambda: sample(full), lambda: sample(network))
    what = f"{config.quant.label}, {len(batch)} images, {sampler.steps} steps"
    return [[what, seconds(theirs), seconds(ours), *ratios(ours, theirs)]]
