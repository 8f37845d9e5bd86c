"""``qdexp COMMAND ...``: the commands of qdexp under one name. ``python -m qdexp ...`` is ``qdexp run ...``."""

import runpy
import sys

from qdexp.errors import did_you_mean, one_line

COMMANDS = {
    "run": ("qdexp", "one cell, or with -m a sweep of cells"),
    "sweep": ("qdexp.sweep", "plan and look after sweeps: status, collect, logs, cancel"),
    "report": ("qdexp.report", "tables, figures and a page of a sweep"),
    "store": ("qdexp.store", "look after results: du, verify, prune, accept, copy"),
    "models": ("qdexp.models", "what a model is made of and what it costs"),
    "export": ("qdexp.export", "the quantized network of a cell as an ONNX file"),
    "reference": ("qdexp.metrics.build", "statistics of real images, for FID"),
    "schema": ("qdexp.config", "all options as a JSON schema"),
    "doctor": ("qdexp.doctor", "what this machine can run: memory, disk, GPUs, backends, packages, Slurm"),
    "wandb": ("qdexp.wandb", "check and send offline W&B runs"),
}


def help_text() -> str:
    """One line for each command."""
    lines = (f"  {name:<10} {what}" for name, (_, what) in COMMANDS.items())
    return "\n".join(["qdexp COMMAND ...", "", *lines, "", "qdexp COMMAND --help tells more of each."])


def main() -> None:
    """Runs the command that ``sys.argv`` names, as ``python -m`` its module. Exits with one line where there is none."""
    name, arguments = sys.argv[1] if len(sys.argv) > 1 else "", sys.argv[2:]
    if name == "--version":
        name, arguments = "run", [name]
    if name in COMMANDS:
        sys.argv = [f"qdexp {name}", *arguments]
        runpy.run_module(COMMANDS[name][0], run_name="__main__", alter_sys=True)
    elif name in ("", "-h", "--help"):
        with one_line():
            print(help_text())
        sys.exit(0 if name else 2)
    else:
        sys.exit(f"qdexp: {name}: no such command{did_you_mean(name, list(COMMANDS))}; there are {', '.join(COMMANDS)}")


if __name__ == "__main__":
    main()
