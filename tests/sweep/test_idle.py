"""What is named on a command line and changes nothing."""

import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

Command = Callable[..., tuple[int, str, str]]
DRY = "hydra.launcher.dry=true"


@pytest.mark.parametrize(
    ("arguments", "axis"),
    [
        ("method=ptq,timestep_aware recon.scales.rate=0.1,0.2", "recon.scales.rate"),
        ("quantizer=linear recon=fast,published", "recon"),
        ("method=ptq tracker=none,wandb", "tracker"),
    ],
)
def test_an_axis_along_which_all_cells_are_equal_is_refused(qdexp: Command, tmp_path: Path, arguments: str, axis: str) -> None:

    code, _, err = qdexp("-m", *arguments.split())
    assert code == 1
    assert f"all cells come out equal, none depends on {axis}; leave the axis out" in err
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        "method=fp seed=0,1",
        "method=fp quant=w8a8,w4a8",
        "method=fp,ptq calib.rows=2,4",
        "method=fp,ptq quantizer.steps.act.rows=2,4",
        "method=ptq,reconstruction recon.scales.rate=0.1,0.2",
        """'hydra.sweeper.cells=["method=ptq quantizer.steps.act.rows=4","calib=uniform quantizer.steps.act.rows=8"]'""",
        "method=ptq seed=0,1",
    ],
)
def test_what_some_cell_reads_or_full_precision_ignores_is_left_alone(qdexp: Command, arguments: str) -> None:
    code, _, err = qdexp("-m", *shlex.split(arguments), DRY)
    assert (code, err) == (0, "")


def test_what_no_cell_reads_is_said(qdexp: Command) -> None:
    said = (
        "note: recon.batch=4 recon.heldout=4 recon.weights.iterations=4 recon.scales.iterations=2: not read, no cell learns\n"
    )
    assert said in qdexp("-m", "method=ptq", DRY)[1]
    for arguments in ("method=fp", "method=ptq,reconstruction"):
        assert "note:" not in qdexp("-m", arguments, DRY)[1]


@pytest.mark.parametrize("option", ["protocol.reference=real.safetensors", "protocol.extractor_weights=inception.pth"])
@pytest.mark.parametrize("flags", [(), ("-m",)])
def test_what_only_an_extractor_reads_is_refused_without_one(qdexp: Command, option: str, flags: tuple[str, ...]) -> None:
    code, _, err = qdexp(*flags, "method=ptq", "protocol.extractor=none", option)
    assert code == 1
    assert err == (
        f"qdexp: {option}: not read, since protocol.extractor=none compares with no reference; "
        "add protocol=fid5k or protocol.extractor=NAME, or leave it out"
    )


WITHOUT_ATTENTION = ["model.network.down_block_types=[DownBlock2D,DownBlock2D]", "model.weights=random",
                     "model.network.up_block_types=[UpBlock2D,UpBlock2D]", "+model.network.add_attention=false"]  # fmt: skip


def test_bits_of_a_softmax_that_is_nowhere_are_refused(qdexp: Command) -> None:
    code, _, err = qdexp("method=ptq", "quant.softmax_bits=16", *WITHOUT_ATTENTION)
    assert (code, err) == (1, "qdexp: quant.softmax_bits=16: does nothing, tiny has no attention; leave it out")
    for arguments in (["-m", "quant.softmax_bits=16", "method=ptq"], ["-m", "method=ptq", *WITHOUT_ATTENTION]):
        assert qdexp(*arguments, DRY)[0] == 0


@pytest.mark.parametrize("flags", [(), ("-m",)])
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("+protocol.scheduler.beta_end=0.2", "protocol.scheduler.beta_end=0.2: does nothing, the network was trained with"),
        (
            "+protocol.scheduler.solver_type=heun protocol.scheduler.solver_order=1",
            "protocol.scheduler.solver_type=heun: does no",
        ),
    ],
)
def test_an_option_of_the_scheduler_that_does_nothing(
    qdexp: Command, tmp_path: Path, flags: tuple[str, ...], option: str, message: str
) -> None:
    code, _, err = qdexp(*flags, "method=fp", *option.split())
    assert code == 1 and err.startswith(f"qdexp: {message}")
    assert not (tmp_path / "out" / "store").exists()


def test_strategies_that_choose_the_same_samples_are_named(qdexp: Command) -> None:
    every = "all 4 of 4 steps: the strategy does not matter"
    several = qdexp("-m", "calib=uniform,last,random", "calib.timesteps=4", DRY)[1]
    assert f"note: calib=uniform,last: {every}, and their results are equal\n" in several
    assert f"note: calib=last: {every}\n" in qdexp("-m", "calib=last", "calib.timesteps=4", DRY)[1]
    for arguments in (
        ["calib=uniform,last,first,middle"],
        ["calib=uniform", "calib.timesteps=4"],
        ["method=ptq,timestep_aware"],
    ):
        assert "note: calib" not in qdexp("-m", *arguments, DRY)[1]


def test_the_steps_that_a_sampler_brings_are_said(qdexp: Command) -> None:
    out = qdexp("-m", "sampler=ddim,plms", "method=fp", "protocol.steps=5", DRY)[1]
    assert "\nsampler  5 DDIM steps, 5 PNDM steps\n" in out
