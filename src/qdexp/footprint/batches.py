"""The number of rows that go through a network at once where the config says ``auto``: a power of two, by the model alone.

Neither the machine nor the method nor the bits have a say, so a model's cells have the same batches, and the same keys,
wherever they are made. One full-precision pass is traced per model, and as many rows are taken as there is ``ROOM`` for.
"""

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from qdexp.config import Config, Model
from qdexp.config.checks import checked
from qdexp.config.memory import AUTO
from qdexp.errors import UserError
from qdexp.footprint import passes
from qdexp.footprint.needs import LEARNING, SAMPLING
from qdexp.models.describe import per_architecture

MOST = {SAMPLING: 64, LEARNING: 8}
"""Rows of small networks, and of those that cannot be traced. What is embedded was measured with them."""
ROOM = 8e9
"""Bytes of a pass, and of a training step: beside both networks of Stable Diffusion, another 8 GB, a card of 24 GB has them."""
PASSES = {SAMPLING: 1.0, LEARNING: 2.5}
"""The memory of a row in a training step, in that of a row in a pass. Training steps of U-Nets that have no room for the most
rows (Stable Diffusion 2 and XL, the pixels of LSUN) were traced with 2.0 to 2.4; of transformers with 4.3 to 4.7, whose rows
are small."""


def settled(cfg: DictConfig) -> Config:
    """The checked config of a composed cell, with numbers in place of ``auto``; ``cfg`` stays as it is."""
    left = [option for option in MOST if OmegaConf.select(cfg, option) == AUTO]
    if not left:
        return Config.of(cfg)
    model = _model(cfg)
    for option in left:  # steps say what recon says
        OmegaConf.update(cfg, option, chosen(model, option))
    try:
        return Config.of(cfg)
    finally:
        for option in left:
            OmegaConf.update(cfg, option, AUTO)


def _model(cfg: DictConfig) -> Model:
    try:
        return checked(Model, OmegaConf.to_container(cfg.model, resolve=True, throw_on_missing=True))
    except (UserError, OmegaConfBaseException):
        return Config.of(cfg).model  # which tells of all that is wrong


def chosen(model: Model, option: str) -> int:
    """The value that ``auto`` stands for."""
    row, most = row_bytes(model), MOST[option]
    rows = most if row is None else min(most, int(ROOM / (PASSES[option] * row)))
    return 1 << max(rows.bit_length() - 1, 0)


@per_architecture
def row_bytes(model: Model) -> float | None:
    """The bytes of a row in a full-precision pass; None where the network cannot run on shapes alone."""
    rows = MOST[SAMPLING]
    found = passes.or_none(lambda: passes.pass_bytes(model, rows, 1, False, False))
    return None if found is None else found / rows
