"""``python -m qdexp.doctor``: what can this machine run?

Processor, memory, disk, GPUs, arithmetic, backends, optional packages, Slurm, the cache of the Hugging Face hub. What is
missing is said with what needs it; nothing is written, and nothing is fetched.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_OFFLINE
from hydra import compose, initialize_config_dir

from qdexp import device as devices
from qdexp import machine, provenance
from qdexp.arguments import Parser
from qdexp.backends import choice
from qdexp.config import Config
from qdexp.errors import UserError, one_line
from qdexp.footprint.places import GB, gigabytes
from qdexp.paths import conf_folder
from qdexp.recon.memory import free_host
from qdexp.sweep import queue

OPTIONAL = {
    "notebook": ("jupyterlab", "docs/notebooks"),
    "docs": ("sphinx", "make docs"),
    "dev": ("pytest", "make test"),
}
"""Extras of the package, with one of their packages and what needs it."""


def main() -> None:
    """Prints a line for each thing that was looked at."""
    parser = Parser("python -m qdexp.doctor", __doc__)
    parser.add_argument("--out", type=Path, default=Path("outputs"), help="the output folder (%(default)s)")
    args = parser.parse_args()
    for subject, told in findings(args.out):
        print(f"{subject:<12}{told}", flush=True)


def findings(out: Path) -> Iterator[tuple[str, str]]:
    """Yield pairs of a topic and the finding for it."""
    cpu = machine.describe(torch.device("cpu"))
    commit = provenance.commit()["commit"]
    yield "qdexp", version("qdexp") + (f", commit {commit[:10]}" if commit else "")
    yield "torch", f"{cpu['torch']}, build {cpu['build']}, {cpu['threads']} of {cpu['cores']} cores"
    yield "processor", cpu["processor"]
    yield "memory", f"{gigabytes(free_host())} GB free of {cpu['memory_gb']} GiB"
    yield "disk", f"{shutil.disk_usage(_existing(out)).free / GB:.0f} GB free for {out}"
    yield "GPU", _gpus()
    yield "bfloat16", _possible(lambda: devices.require_arithmetic(devices.resolve("auto"), "bfloat16", False))
    yield "compiler", _possible(lambda: devices.require_arithmetic(devices.resolve("auto"), "float32", True))
    for name in choice.names():
        yield choice.OPTION, f"{name}: {_possible(partial(_check_backend, name))}"
    for extra, (package, what) in OPTIONAL.items():
        yield extra, _package(package) or f"not installed: {what} needs it, pip install 'qdexp[{extra}]'"
    yield "Slurm", _slurm()
    yield "hub", f"{HF_HUB_CACHE}" + (", and nowhere else (HF_HUB_OFFLINE)" if HF_HUB_OFFLINE else "")


def _existing(path: Path) -> Path:
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())


def _gpus() -> str:
    if not torch.cuda.is_available():
        return (
            f"none that torch sees (built for CUDA {torch.version.cuda})"
            if torch.version.cuda
            else "torch is built without CUDA"
        )
    found = [machine.describe(torch.device("cuda", index)) for index in range(torch.cuda.device_count())]
    return "; ".join(f"{one['gpu']}, {one['gpu_memory_gb']} GiB, driver {one['driver']}, CUDA {one['cuda']}" for one in found)


def _possible(check: Callable[[], object]) -> str:
    try:
        check()
    except UserError as error:
        return f"no: {error}"
    return "yes"


def _check_backend(name: str) -> None:
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        choice.check(Config.of(compose("config", [f"{choice.OPTION}={name}", "quant=w8a8"])))


def _package(name: str) -> str | None:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return None


def _slurm() -> str:
    if shutil.which("sbatch") is None:
        return "no sbatch here: hydra/launcher=slurm is for a node that has it"
    try:
        return f"sbatch; {len(queue.queue())} jobs of {os.environ.get('USER', 'yours')} in the queue"
    except UserError as error:
        return f"no: {error}"


if __name__ == "__main__":
    with one_line():
        main()
