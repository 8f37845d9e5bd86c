"""What is measured: a model in three widths, and real calibration rows of it.

Everything comes from the config that `python -m qdexp` composes, so that any model, quantizer or option can be measured by the
overrides that it knows.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import nn

from qdexp import device as devices
from qdexp import files, models
from qdexp.cell import preflight
from qdexp.config import ACTIVATIONS, WEIGHTS, Config
from qdexp.errors import UserError
from qdexp.methods import Nearest, WeightRounding, Work, recipe
from qdexp.overrides import completed
from qdexp.paths import conf_folder
from qdexp.quant.blocks import Batch, first_row
from qdexp.stages import calibration
from qdexp.store import Store
from qdexp.sweep.freeze import freeze

DEFAULTS = {"method=qdiffusion": {"method", "quantizer", "calib"}, "tracker=none": {"tracker"}}
"""What holds unless one of these axes is named."""


def config_of(overrides: Sequence[str]) -> Config:
    """The checked config of a cell: the full method, unless the overrides say otherwise."""
    named = {override.partition("=")[0] for override in overrides}
    defaults = [default for default, axes in DEFAULTS.items() if not axes & named]
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return preflight(freeze(compose("config", completed([*defaults, *overrides]), return_hydra_config=True))).config


@dataclass(frozen=True)
class Subject:
    """A model and `rows` calibration rows, chosen from full-precision trajectories of its own. `folder`: for its files."""

    config: Config
    rows: int
    folder: Path

    @property
    def device(self) -> torch.device:
        """Where it is measured."""
        return devices.resolve(self.config.device)

    @cached_property
    def calibration(self) -> Path:
        """The folder of the rows, as stages read it."""
        calib = self.config.calib
        each = -(-self.rows // calib.timesteps)
        config = replace(self.config, calib=replace(calib, rows=each), trajectory=replace(self.config.trajectory, samples=each))
        made = calibration.CalibrationStage.of(config).make(Store(self.folder)).folder
        chosen = self.folder / f"rows-{self.rows}"
        chosen.mkdir(exist_ok=True)
        x_t, t = (part[: self.rows].clone() for part in calibration.read_rows(made))
        files.write_tensors(chosen / calibration.FILE, {"x_t": x_t, "t": t})
        return chosen

    @property
    def batches(self) -> list[Batch]:
        """The rows as forward passes take them."""
        return calibration.read_batches(self.calibration, self.config.sampling.batch, self.device)

    def full(self) -> nn.Module:
        """The full-precision network."""
        return models.build(self.config.model, self.config.sampling.channels_last).to(self.device)

    def rounded(self, full: nn.Module) -> tuple[nn.Module, Mapping[str, Sequence[bool]]]:
        """A copy of `full` with weights rounded to nearest and activations not quantized yet; its blocks."""
        network = copy.deepcopy(full)
        work = self.work(network, frozenset({WEIGHTS}))
        for one in recipe.steps_of(self.config):
            rounding = one.step if isinstance(one.step, WeightRounding) else None
            step = one.step if rounding is None else Nearest(range=rounding.range)
            step.apply(work)
            if rounding is not None:
                break
        return network, work.adapter.blocks

    def observe(self, network: nn.Module) -> None:
        """Gives a network that was `rounded` the grids of its activations too, as the method finds them on the rows."""
        for one in recipe.steps_of(self.config):
            if ACTIVATIONS in one.step.quantizes:
                one.step.apply(self.work(network, frozenset({ACTIVATIONS})))

    def work(self, network: nn.Module, what: frozenset[str]) -> Work:
        """What a step gets that quantizes ``what`` of the network."""
        batches = self.batches
        return Work(
            network=network,
            quant=self.config.quant.only(what),
            model=self.config.model,
            example=first_row(batches[0]),
            batches=batches,
            least=1,
            seed=self.config.seed,
            folder=self.folder,
            build=self.full,
        )


@dataclass(frozen=True)
class NoiseRows(Subject):
    """Rows of noise at all timesteps in place of calibration rows, for costs, which do not depend on values."""

    @cached_property
    def batches(self) -> list[Batch]:
        """At most `sampling.batch` rows each."""
        generator = torch.Generator().manual_seed(0)
        x_t = torch.randn(self.rows, *self.config.model.shape, generator=generator).to(self.device)
        t = torch.linspace(0, 999, self.rows).long().to(self.device)
        size = self.config.sampling.batch
        return list(zip(x_t.split(size), t.split(size), strict=True))


def resized(config: Config, width: float, folder: Path) -> Config:
    """The config of a model `width` times as wide, with random weights that are kept in `folder`."""
    network = dict(config.model.network)
    try:
        network["block_out_channels"] = [int(channels * width) for channels in network["block_out_channels"]]
        network["norm_num_groups"] = int(network["norm_num_groups"] * width)
    except KeyError as missing:
        raise UserError(f"growth: model.network has no {missing} to change its width by; leave growth out") from missing
    weights = folder / f"width-{width:g}.safetensors"
    torch.manual_seed(0)
    files.write_tensors(weights, instantiate(network, _convert_="all").state_dict())
    name = f"{config.model.name} x {width:g}"
    return replace(config, model=replace(config.model, name=name, network=network, weights=str(weights)))


@torch.inference_mode()
def one_pass(network: nn.Module, batches: Sequence[Batch]) -> None:
    """All rows through the network once."""
    for batch in batches:
        network(*batch)
