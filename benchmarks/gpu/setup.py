"""What sections are given: the device, the size of all, a folder, and how much time there is."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.apart import Apart, Work
from benchmarks.subject import config_of
from qdexp.config import Config

Row = dict[str, Any]
"""By the names of columns."""

RANDOM = ["model.weights=random", "protocol=quick"]
NARROW = {
    "ddpm_fashion": [*RANDOM, "model.network.block_out_channels=[8,8,8]", "model.network.layers_per_block=1",
                     "model.network.norm_num_groups=4"],
    "dit_fashion": [*RANDOM, "model.network.num_layers=2", "model.network.attention_head_dim=4"],
    "ldm_bedroom": ["model.network.block_out_channels=[32,32,64,64]", "model.network.layers_per_block=1",
                    "model.shape=[3,16,16]"],
    "sd_v1_4": ["model.network.block_out_channels=[32,32,64,64]", "model.network.layers_per_block=1",
                "model.network.attention_head_dim=4", "model.shape=[4,16,16]"],
}  # fmt: skip
"""The models of the small run."""
FULL_WIDTH = ["model.weights=random", "model.first_stage.weights=random", "protocol.extractor=none"]
SHORT = ["protocol.n=128", "protocol.heldout=32", "protocol.steps=5", "trajectory.samples=64", "calib.timesteps=5",
         "calib.rows=16", "recon.heldout=16", "recon.weights.iterations=20", "recon.scales.iterations=10",
         "inspection.rows=0"]  # fmt: skip
"""Of cells whose ablation takes a CPU some minutes."""
SMALL = ["protocol.n=16", "protocol.heldout=4", "protocol.steps=2", "trajectory.samples=8", "calib.timesteps=2", "calib.rows=4",
         "sampling.batch=8", "recon.batch=4", "recon.heldout=4", "recon.weights.iterations=2", "recon.scales.iterations=2",
         "inspection.rows=0"]  # fmt: skip


@dataclass(frozen=True)
class Setup:
    """``kind``: of device; ``small``: everything tiny, to see the command run to its end; ``folder``: for files; ``end``: when
    all has to be done, by ``time.monotonic``."""

    kind: str
    small: bool
    folder: Path
    end: float

    @property
    def device(self) -> torch.device:
        return torch.device(self.kind)

    def apart(self, work: Work, *arguments: Any) -> Apart:
        """``work(self, *arguments)`` in a process of its own."""
        return Apart(self.end, work, self, *arguments)

    def rows(self, work: Work, *arguments: Any) -> Iterator[Row]:
        """All that it yields."""
        with self.apart(work, *arguments) as running:
            yield from running

    def cell(self, model: str, *options: str) -> Config:
        """The short cell of an embedded model; the options win."""
        return self._config(model, [*(SMALL if self.small else SHORT), *options])

    def wide(self, model: str, *options: str) -> Config:
        """A model of the papers with random weights at its full width; a narrow one in the small run."""
        return self._config(model, [*FULL_WIDTH, *options])

    def _config(self, model: str, options: list[str]) -> Config:
        narrow = NARROW[model] if self.small else []
        chosen = {option.partition("=")[0]: option for option in [f"out={self.folder / model}", f"device={self.kind}",
                  "tracker=none", *narrow, *options]}  # fmt: skip
        return config_of([f"model={model}", *chosen.values()])
