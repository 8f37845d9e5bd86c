"""The command as a user types it: what it prints, how it ends, what it leaves behind."""

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from processes import Python

from qdexp import files
from qdexp.cli import COMMANDS
from qdexp.paths import conf_folder

TOP = Path(__file__).parents[1]
Command = Callable[..., tuple[int, str, str]]


def start(arguments: list[str], folder: Path) -> subprocess.Popen[str]:
    """``python -m qdexp`` in ``folder``."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "qdexp", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True, preexec_fn=listen_to_interrupts
    )


def listen_to_interrupts() -> None:
    """Tests that a shell runs in the background ignore Ctrl-C, and what they start would too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_help_names_every_axis_and_choice(tmp_path: Path) -> None:
    process = start(["--help"], tmp_path)
    out, err = process.communicate()
    assert (process.returncode, err) == (0, "")
    for axis in (path for path in conf_folder().iterdir() if path.is_dir()):
        line = next(line for line in out.splitlines() if line.strip().startswith(f"{axis.name}:"))
        listed = {choice.strip() for choice in line.partition(":")[2].split(",")}
        assert listed == {path.stem for path in axis.glob("*.yaml")}
    for option in ("quant.weight_bits", "quant.layers", "protocol.n", "sampling.batch", "seed", "out", "hydra.searchpath"):
        assert option in out
    assert not list(tmp_path.iterdir())
    row = next(line for line in (TOP / "README.md").read_text().splitlines() if line.startswith("| `sampler`"))
    steps = {path.stem: OmegaConf.load(path).steps for path in (conf_folder() / "sampler").glob("*.yaml")}
    brought = {name: number for name, number in steps.items() if number is not None}
    told = re.search(r"which brings: .*?protocol", out, re.DOTALL)
    assert told is not None
    assert {name: int(steps) for name, steps in re.findall(r"(\w+) (\d+)", told.group())} == brought
    assert {name: int(steps) for name, steps in re.findall(r"`(\w+)` \((\d+)\)", row)} == brought


def test_hydras_own_options_work(qdexp: Command, tmp_path: Path) -> None:
    code, out, _ = qdexp("--cfg=job", "quant=w8a8")
    assert code == 0
    assert "weight_bits: 8" in out
    assert "name: tiny" in out
    assert not (tmp_path / "out").exists()


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """``qdexp``, as the installed script runs it."""
    script = "from qdexp.cli import main; main()"
    return subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True)


def test_one_command_leads_to_all_others() -> None:
    listed = command("--help")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert command().returncode == 2
    for name, (module, _) in COMMANDS.items():
        assert f"  {name} " in listed.stdout
        assert importlib.util.find_spec(module) is not None
    schema = json.loads(command("schema").stdout)
    assert schema["$defs"]["Trajectory"]["properties"]["samples"]["exclusiveMinimum"] == 0
    described = command("store", "du", "--help")
    assert (described.returncode, described.stderr) == (0, "")
    assert "--out" in described.stdout
    wrong = command("stor")
    assert (wrong.returncode, wrong.stderr) == (
        1,
        f"qdexp: stor: no such command, did you mean store?; there are {', '.join(COMMANDS)}\n",
    )


@pytest.mark.parametrize("module", ["qdexp", "qdexp.cli"])
def test_help_that_nobody_reads_to_its_end_ends_without_a_word(module: str) -> None:
    shell = f"{sys.executable} -m {module} --help | head -n 1; echo ${{PIPESTATUS[0]}}"
    for _ in range(3):  # whether the pipe is closed in time is up to chance
        done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True)
        assert done.stderr == ""
        assert done.stdout.splitlines()[-1] in ("0", "141")


MISTAKES = {
    "quant=w9a9": ["quant=w9a9", "there are fp8, "],
    "model=unknown": ["model=unknown", "tiny"],
    "method=qdifusion": ["method=qdifusion", "did you mean qdiffusion?"],
    "quant.weight_bits=99": ["quant.weight_bits=99", "2, 3, 4, 5, 6, 7, 8 or 32"],
    "quant.weight_bits=four": ["quant.weight_bits", "four"],
    "quant.act_bits=3": ["quant.act_bits=3", "4, 5, 6, 7, 8 or 32"],
    "quant.wieght_bits=4": ["quant.wieght_bits: there is no such option, did you mean weight_bits?"],
    "qunat=w8a8": ["qunat: there is no such option, did you mean quant?"],
    "quant=8": ["quant=8", "--help lists"],
    "quant=[w8a8,w4a8]": ["quant=[", "-m quant=w8a8,w4a8"],
    "quant.layers={nothing_like_it: {weight_bits: 8}}": ["quant.layers", "nothing_like_it"],
    "calib.timesteps=5": ["calib.timesteps=5", "4 steps"],
    "calib.timesteps=0": ["calib.timesteps=0"],
    "calib.rows=17": ["calib.rows=17", "trajectory.samples"],
    "calib.strategy._target_=qdexp.calib.strategies.nosuch": ["_target_=qdexp.calib.strategies.nosuch", "PYTHONPATH"],
    "recon.heldout=0": ["recon.heldout=0"],
    "quantizer.steps.act.range.p=0": ["quantizer.steps.act.range: ", "p=0"],
    "quantizer.steps.act.range._target_=torch.nn.PairwiseDistance": [
        "act.range._target_=torch.nn.PairwiseDistance",
        "RangeEstimator",
    ],
    "quantizer.steps.weights._target_=qdexp.methods.AdaRuond": ["weights._target_=qdexp.methods.AdaRuond", "methods.AdaRound?"],
    "protocol.steps=1001": ["protocol.steps=1001", "1000 timesteps"],
    "quantizer.steps.act.range._target_=nosuch.Range": ["_target_=nosuch.Range", "PYTHONPATH"],
    "protocol.scheduler._target_=diffusers.NoSuch": ["_target_=diffusers.NoSuch"],
    "model.network._target_=nosuch.Net": ["_target_=nosuch.Net"],
    "protocol.n=5": ["protocol.n=5"],
    "protocol.extractor=nosuch": ["protocol.extractor=nosuch", "fashion-cnn"],
    "protocol.reference=nosuch": ["protocol.reference=nosuch"],
    "model.shape=[3,28,28]": ["protocol.extractor", "[3, 28, 28]"],
    "model.weights=nosuch.safetensors": ["model.weights=nosuch.safetensors", "no such file"],
    "model.weights=TORN": ["model.weights=", "not a whole safetensors file"],
    "out=FILE": ["out=", "file/below", "choose a folder"],
    "device=tpu": ["device=tpu", "cpu"],
    "sweep=a/b": ["sweep=a/b"],
    "nonsense": ["nonsense"],
    "tracker.mode=loud": ["tracker.mode"],
    "quantizer.file=nowhere.pth": ["quantizer.file is called quantizer.steps.released.file now"],
    "protocol=fid50k": ["protocol.reference=: ", "qdexp.metrics.build"],
}

SWEEPS = [
    "quant=w8a8,w4a8",
    "seed=range(0,2)",
    "hydra/launcher=slurm",
    "hydra.launcher.dry=true",
    'hydra.sweeper.cells=["method=fp","method=ptq"]',
    "experiment=bits",
]


@pytest.fixture
def places(tmp_path: Path, own_conf: Path) -> dict[str, str]:
    """What TORN and FILE stand for in the table: half a weights file, and a folder below a regular file."""
    raw = (own_conf / "tiny.safetensors").read_bytes()
    (tmp_path / "torn.safetensors").write_bytes(raw[: len(raw) // 2])
    (tmp_path / "file").write_text("")
    return {"TORN": str(tmp_path / "torn.safetensors"), "FILE": str(tmp_path / "file" / "below")}


@pytest.mark.parametrize(
    ("flags", "mistake"),
    [("", mistake) for mistake in MISTAKES] + [("-m method=ptq,timestep_aware", mistake) for mistake in list(MISTAKES)[::5]],
)
def test_a_mistake_is_one_line(qdexp: Command, tmp_path: Path, places: dict[str, str], flags: str, mistake: str) -> None:
    option = mistake
    for name, place in places.items():
        option = option.replace(name, place)
    before = {path.name for path in tmp_path.iterdir()}
    code, out, err = qdexp(*flags.split(), option)
    assert (code, out) == (1, "")
    assert err.startswith("qdexp: ")
    assert "\n" not in err
    assert all(part in err for part in MISTAKES[mistake]), err
    assert {path.name for path in tmp_path.iterdir()} - before <= {"out"}
    assert not list((tmp_path / "out").glob("*"))


@pytest.mark.parametrize(
    ("mistake", "said"),
    [
        ("quantizer.steps.act.range._target_=nosuch.Range", "qdexp: _target_=nosuch.Range: cannot be imported ("),
        ("hydra.verbose={}", "qdexp: hydra.verbose={}: is nothing that Hydra can read ("),
        (f"sweep={'x' * 300}", "qdexp: "),
    ],
)
def test_a_mistake_is_one_line_in_a_process_of_its_own(small: list[str], tmp_path: Path, mistake: str, said: str) -> None:
    """Where nobody listens to what libraries log."""
    done = Python(["-m", "qdexp", *small, mistake], tmp_path).wait()
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(said) and done.stderr.count("\n") == 1


@pytest.mark.parametrize("option", SWEEPS)
def test_what_only_a_sweep_can_do_is_refused_without_it(qdexp: Command, tmp_path: Path, option: str) -> None:
    code, out, err = qdexp(option)
    assert (code, out) == (1, "")
    assert err.startswith(f"qdexp: {option}: ") and err.endswith("; add -m")
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize(
    ("mistake", "named"),
    [("norm_num_groups=3", "qdexp: model.network: "), ("layers_per_block=2", "does not fit model.network")],
)
def test_a_network_that_cannot_be_built(qdexp: Command, tmp_path: Path, mistake: str, named: str) -> None:
    code, _, err = qdexp(f"model.network.{mistake}")
    assert code == 1
    assert err.startswith("qdexp: model.")
    assert named in err
    assert "\n" not in err
    assert not list(tmp_path.glob("out/store/trajectory-*"))


@pytest.mark.parametrize(("method", "refused"), [("qdiffusion", True), ("reconstruction", True), ("timestep_aware", False)])
def test_rows_to_learn_from_must_be_left(qdexp: Command, tmp_path: Path, method: str, refused: bool) -> None:
    code, _, err = qdexp(f"method={method}", "recon.heldout=8")
    assert (code == 1) is refused
    assert not refused or err == (
        "qdexp: quantizer.steps.weights.heldout=8: leaves none of the 8 rows of the calibration set to learn from; "
        "lower it (recon.heldout), or raise calib.rows"
    )
    assert (tmp_path / "out" / "store").exists() is not refused


def test_a_torn_list_of_cells_is_one_line(qdexp: Command, tmp_path: Path) -> None:
    cells = tmp_path / "out" / "sweeps" / "trial" / "cells.json"
    cells.parent.mkdir(parents=True)
    cells.write_text('{"tiny-')
    code, out, err = qdexp("-m", "method=fp")
    assert (code, out) == (1, "")
    assert re.fullmatch(rf"qdexp: {cells} is no list of cells \(.*EOF.*\): delete it and run its sweep again", err)


def test_a_mistake_in_a_process_of_its_own(small: list[str], tmp_path: Path) -> None:
    process = start([*small, "quant=w9a9"], tmp_path)  # found before torch is loaded
    out, err = process.communicate()
    assert (process.returncode, out) == (1, "")
    assert re.fullmatch(r"qdexp: quant=w9a9.*\n", err)


@pytest.mark.parametrize("flags", [(), ("-m",)], ids=["one", "sweep"])
def test_what_the_config_tells_is_said_before_torch_is_loaded(small: list[str], flags: tuple[str, ...]) -> None:
    arguments = [*flags, *(option for option in small if not option.startswith("protocol.n=")), "protocol.n=5", "method=fp"]
    script = f"""
import sys
from qdexp.__main__ import main
sys.argv[1:] = {arguments!r}
try:
    main()
except SystemExit as stop:
    assert str(stop).startswith("qdexp: protocol.n=5: "), stop
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


SAMPLING = ("method=fp", "protocol.n=160")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("undisturbed")


@pytest.fixture
def undisturbed(qdexp: Command, folder: Path) -> Path:
    """The output folder of ``SAMPLING`` in one go. Run once."""
    if not (folder / "records").exists():
        assert qdexp(*SAMPLING, f"out={folder}")[0] == 0
    return folder


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_stopped_while_it_samples(
    qdexp: Command, small: list[str], undisturbed: Path, tmp_path: Path, how: signal.Signals
) -> None:
    """Started again it keeps the shards that are there, and ends in the images of an undisturbed run."""
    process = Python(["-m", "qdexp", *(one for one in small if not one.startswith("protocol.n=")), *SAMPLING], tmp_path)
    deadline = time.monotonic() + 120
    while not (shards := sorted((tmp_path / "out" / "store").glob(".work-samples-*/shard-*"))):
        assert process.poll() is None, process.wait().stderr
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(how)
    done = process.wait()
    assert done.returncode == (1 if how == signal.SIGINT else -how)
    if how == signal.SIGINT:
        assert done.stderr == "qdexp: stopped; finished stages are kept, the same command goes on\n"
    first = shards[0].stat()
    assert not list((tmp_path / "out").glob("store/samples-*"))

    assert qdexp(*SAMPLING)[0] == 0
    (resumed,), (whole,) = (list(out.glob("store/samples-*")) for out in (tmp_path / "out", undisturbed))
    kept = (resumed / shards[0].name).stat()
    assert (kept.st_ino, kept.st_mtime_ns) == (first.st_ino, first.st_mtime_ns)
    digests = [{path.name: files.sha256(path) for path in folder.glob("shard-*")} for folder in (resumed, whole)]
    assert len(digests[0]) == 20
    assert digests[0] == digests[1]
    made, straight = (
        sorted(json.loads(line)["entry"] for line in (out / "executions.jsonl").read_text().splitlines())
        for out in (tmp_path / "out", undisturbed)
    )
    assert made == straight and len(set(made)) == len(made), "each stage was made once"


LITTERING = """\
import signal
import torch

class Litter:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

class Net(torch.nn.Conv2d):
    def __init__(self, **architecture):
        super().__init__(1, 1, 3, padding=1)
        self.calls = 0

    def forward(self, x_t, t):
        self.calls += 1
        if self.calls == 1:
            Litter()
        return super().forward(x_t)
"""


def test_an_interrupt_that_meets_a_finalizer_is_not_lost(
    small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "littering.py").write_text(LITTERING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    network = ["model.network._target_=littering.Net", "model.weights=random", "method=fp", "protocol.n=4000"]
    process = start([*(option for option in small if not option.startswith("protocol.n=")), *network], tmp_path)
    _, err = process.communicate()
    assert err == "qdexp: stopped; finished stages are kept, the same command goes on\n"
    assert process.returncode == 1


@pytest.mark.slow  # 15 s: three processes load all that qdexp needs
def test_a_sweep_through_submitit(qdexp: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each cell in a process of its own; what comes back is the same table."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    code, out, err = qdexp("-m", "method=fp,ptq", "hydra/launcher=submitit_local")
    assert code == 0, err
    records = [json.loads(Path(path).read_text()) for path in re.findall(r"^record +(.*)$", out, flags=re.MULTILINE)]
    assert [record["axes"]["method"] for record in records] == ["fp", "ptq"]
    assert all(record["status"] == "complete" for record in records)
