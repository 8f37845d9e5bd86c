"""python -m qdexp.models model=NAME [OPTION=VALUE ...]

Describes a model, its weights need not be there: parameters, multiply-accumulates, sizes, bit operations and the share that is
quantized at each bit-width, the memory of passes and learning, what stays in full precision, its blocks in the order in which
they run, and where split shortcuts cut. All options of `python -m qdexp` are understood; quant.layers, quant.softmax_bits,
quant.first_last_bits, sampling.batch and recon.batch count.
"""

import sys
from collections.abc import Iterator, Sequence

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from qdexp import models, overrides
from qdexp.config import Config, Model, Quant
from qdexp.errors import UserError, one_line
from qdexp.footprint import batches, passes, walks
from qdexp.footprint.needs import LEARNING, SAMPLING
from qdexp.models import checks, folder, trial
from qdexp.models.describe import Block, Description, describe
from qdexp.paths import conf_folder
from qdexp.quant.coverage import Coverage


def main(arguments: list[str]) -> None:
    """Prints the description. Exits with one line where an option is wrong."""
    if not arguments:
        sys.exit(__doc__)
    if {"-h", "--help"} & set(arguments):
        print(__doc__, end="")
        return
    with one_line(HydraException, OmegaConfBaseException):
        if flag := next((argument for argument in arguments if argument.startswith("-")), None):
            raise UserError(f"{flag}: is for runs; a description takes OPTION=VALUE alone, leave it out")
        overrides.check(arguments)
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            quants = [_config([*arguments, f"quant={choice}"]).quant for choice in _choices()]
            config = _config(arguments)
        trial.check(config.model)
        description = describe(config.model)
        left_out = left_out_lines(description.coverage(config.quant))
        parts = (
            summary(config.model, description),
            costs(description, quants),
            memory_lines(config),
            left_out,
            block_lines(description.blocks),
        )
        print("\n\n".join("\n".join(part) for part in parts))


def _choices() -> list[str]:
    return sorted(path.stem for path in (conf_folder() / "quant").glob("*.yaml"))


def _config(arguments: list[str]) -> Config:
    return batches.settled(folder.filled(compose("config", arguments)))


def summary(model: Model, description: Description) -> Iterator[str]:
    yield f"{model.name}: {model.network['_target_']}, x_t {model.shape}"
    yield f"weights     {_weights(model)}"
    # papers cut rather than round: 274,056,163 is 274.0 M there
    yield f"parameters  {description.parameters:,} ({description.parameters // 10**5 / 10:.1f} M)"
    yield f"MACs        {description.macs / 1e9:,.2f} G in one forward pass of one sample"
    if model.first_stage is not None:
        scale = model.first_stage.scale or "the scale that the checkpoint holds"
        yield f"first stage {model.first_stage.network['_target_']}, full precision, latents / {scale}"


def _weights(model: Model) -> str:
    if models.is_random(model):
        return "random"
    try:
        paths = ", ".join(str(path) for path in models.files(model, fetch=False).values())
    except UserError as error:
        return f"missing: {error}"
    try:
        checks.fit(model)
    except UserError as error:
        return f"{paths}; no run takes them: {error}"
    return paths


def costs(description: Description, quants: list[Quant]) -> Iterator[str]:
    """One line a bit-width: sizes in 10^6 bytes, bit operations, and how much of all MACs and parameters is quantized."""
    whole = Quant(weight_bits=32, act_bits=32, softmax_bits=16, first_last_bits=8)
    ordered = sorted([whole, *quants], key=lambda quant: (-quant.weight_bits, -quant.act_bits))
    width = max(len(quant.label) for quant in ordered)
    yield f"{'bits':<{width}} {'nominal MB':>12} {'stored MB':>12} {'GBOPs':>14} {'MACs, %':>9} {'parameters, %':>14}"
    for quant in ordered:
        found, stored = description.coverage(quant), description.stored_bytes(quant) / 1e6
        nominal = description.nominal_bytes(quant, found.weights) / 1e6
        shares = [100 * (1 - counts["full"] / max(counts.total(), 1)) for counts in (found.macs, found.parameters)]
        yield (f"{quant.label:<{width}} {_shown(nominal):>12} {_shown(stored):>12} {_shown(found.bit_operations / 1e9):>14} "
               f"{shares[0]:>9.2f} {shares[1]:>14.2f}")  # fmt: skip


def _shown(value: float) -> str:
    """Small networks have sizes too: 0.0086."""
    return f"{value:,.1f}" if value >= 10 else f"{value:.2f}" if value >= 0.1 else f"{value:.2g}"


def memory_lines(config: Config) -> Iterator[str]:
    """10^6 bytes of tensors that networks, passes, rows and learning take, with the batches of the options."""
    model, batch, rows = config.model, config.sampling.batch, config.recon.batch
    weights, scales = (walks.walked(model, kind, rows, "gptq") for kind in (walks.WEIGHTS, walks.SCALES))
    table = {
        "network": {"": passes.network_bytes(model, False), "quantized": passes.network_bytes(model, True)},
        f"pass of {batch} rows": {
            "": passes.pass_bytes(model, batch, 1, False, False),
            "quantized": passes.pass_bytes(model, batch, 1, True, False),
        },
        "calibration row": {"": passes.row_bytes(model), "as blocks are learned": max(weights.row, scales.row)},
        f"learning, {rows} rows": {"weights": weights.step, "scales": scales.step, "second order": weights.second_order},
    }
    if model.first_stage is not None:
        table["first stage"] = {f"{batch} latents": passes.decoded(model, batch).peak}
    yield f"memory, MB ({SAMPLING}={batch}, {LEARNING}={rows})"
    for what, sizes in table.items():
        told = (f"{name} {size / 1e6:,.1f}".strip() for name, size in sizes.items())
        yield f"{what:<18} {', '.join(told)}"


def left_out_lines(found: Coverage) -> Iterator[str]:
    """One line a kind of what stays in full precision."""
    title = "in full precision"
    width = max(map(len, [title, *found.left_out]))
    yield f"{title:<{width}} {'count':>7} {'parameters':>12} {'MMACs':>10}  names"
    for kind, some in found.left_out.items():
        yield f"{kind:<{width}} {len(some.names):>7,} {some.parameters:>12,} {some.macs / 1e6:>10,.1f}  {some}"


def block_lines(blocks: Sequence[Block]) -> Iterator[str]:
    """One line a block, in execution order."""
    width = max((len(block.name) for block in blocks), default=0)
    yield f"{'block':<{width}} {'kind':<22} {'parameters':>12} {'MMACs':>10}  reads a concatenation of"
    for block in blocks:
        reads = {"+".join(map(str, read.sizes)) for read in block.reads.values()}
        line = f"{block.name:<{width}} {block.kind:<22} {block.parameters:>12,} {block.macs / 1e6:>10,.1f}  {', '.join(reads)}"
        yield line.rstrip()


if __name__ == "__main__":
    main(sys.argv[1:])
