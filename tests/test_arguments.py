"""The command lines of all commands but Hydra's: a slip is one line, and help has no marks of docstrings."""

import runpy
import sys

import pytest

from qdexp.cli import COMMANDS, main

pytestmark = pytest.mark.filterwarnings("ignore:.*found in sys.modules")  # run as commands, in this process
OURS = [module for name, (module, _) in COMMANDS.items() if name not in ("run", "models")]
SLIPS = {
    "qdexp.report --basline fp x": "unrecognized arguments: --basline, did you mean --baseline?; python -m qdexp.report --help",
    "qdexp.sweep statis": "'cancel'), did you mean status?; python -m qdexp.sweep --help tells more",
    "qdexp.sweep status --lvie": "unrecognized arguments: --lvie, did you mean --live?; ",
    "qdexp.store du --otu=x": "unrecognized arguments: --otu=x, did you mean --out?; ",
    "qdexp.store copy": "the following arguments are required: sweep, to; python -m qdexp.store copy --help tells more",
    "qdexp.export cell --flie=x": "unrecognized arguments: --flie=x, did you mean --file?; ",
    "qdexp.wandb chek": "'sync'), did you mean check?; ",
    "qdexp.config --hepl": "unrecognized arguments: --hepl, did you mean --help?; ",
    "qdexp.metrics.build x --out y --prepare lmd": "did you mean ldm?; ",
}


@pytest.mark.parametrize("line", SLIPS)
def test_a_slip_is_told_with_what_was_meant(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module, *arguments = line.split()
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module(module, run_name="__main__")
    out, err = capsys.readouterr()
    assert (stop.value.code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("qdexp: ") and SLIPS[line] in err


@pytest.mark.parametrize("module", OURS)
def test_help_is_plain_text(module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [module, "--help"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module(module, run_name="__main__")
    printed = capsys.readouterr().out
    assert stop.value.code == 0
    assert printed.startswith(f"usage: python -m {module} ")
    assert "``" not in printed


def test_a_command_that_there_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["qdexp", "stor"])
    with pytest.raises(SystemExit, match=r"^qdexp: stor: no such command, did you mean store\?; there are run, "):
        main()


def test_the_version_is_qdexps(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["qdexp", "--version"])
    main()
    assert capsys.readouterr().out.startswith("qdexp ")
