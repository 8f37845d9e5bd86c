from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from qdexp.cell import Cell
from qdexp.config import Memory
from qdexp.device import elsewhere
from qdexp.errors import UserError
from qdexp.recon import memory
from qdexp.recon.memory import budgets, bytes_a_batch, free_host

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "option", ["memory.host_gb=1e-9", "memory.device_gb=1e-9", "memory.scratch=/no/such", "memory.scratch=/proc"]
)
@pytest.mark.parametrize("method", ["method=reconstruction", "quantizer=gptq"])
def test_a_fault_is_named_before_any_work(cell_of: Callable[..., Cell], option: str, method: str) -> None:
    with pytest.raises(UserError, match=f"^{option.replace('1e-9', '1e-09')}: ") as caught:
        cell_of(method, option)
    assert "\n" not in str(caught.value)


def test_who_learns_nothing_needs_no_room(cell_of: Callable[..., Cell]) -> None:
    cell_of("method=ptq", "memory.host_gb=1e-9")
    cell_of("method=reconstruction", "memory.host_gb=0")


def test_a_folder_of_another_machine_is_looked_for_there(cell_of: Callable[..., Cell]) -> None:
    with elsewhere("cpu"):
        cell_of("method=reconstruction", "memory.scratch=/no/such")
    with pytest.raises(UserError, match=r"^memory\.scratch=/no/such: No such file"):
        budgets(Memory(scratch="/no/such"), CPU, Path())


def test_the_old_name_is_refused_with_the_new_one(qdexp: Callable[..., tuple[int, str, str]]) -> None:
    code, _, err = qdexp("recon.cache_gb=2")
    assert code == 1
    assert err.splitlines()[-1].endswith(
        "recon.cache_gb=2: recon.cache_gb is called memory.host_gb (on a GPU memory.device_gb too) now"
    )


def test_a_node_names_its_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of them that can be used; a folder that is named comes before."""
    for name in ("slurm", "tmp", "named"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("SLURM_TMPDIR", str(tmp_path / "slurm"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    store = tmp_path / "store"
    assert budgets(Memory(), CPU, store).scratch == tmp_path / "slurm"
    assert budgets(Memory(scratch=str(tmp_path / "named")), CPU, store).scratch == tmp_path / "named"
    (tmp_path / "slurm").rmdir()
    assert budgets(Memory(), CPU, store).scratch == tmp_path / "tmp"
    monkeypatch.delenv("TMPDIR")
    assert budgets(Memory(), CPU, store).scratch == store


def test_on_a_cpu_the_host_has_the_one_tier_of_memory() -> None:
    made = budgets(Memory(device_gb=3, host_gb=2), CPU, Path())
    assert (made.device, made.host) == (2_000_000_000, 0)
    free = budgets(Memory(), CPU, Path()).device
    assert free is not None and 0 < free < free_host() * 1.1


def test_the_bytes_of_a_batch() -> None:
    assert bytes_a_batch([3, 32, 32], 64) == torch.empty(64, 3, 32, 32).nbytes


@pytest.mark.parametrize(
    ("line", "place", "limit", "used", "cached"),
    [
        ("0::/job/step", "job/step", "memory.max", "memory.current", "inactive_file"),
        ("4:memory:/job/step", "memory/job/step", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ],
)
def test_limits_of_cgroups_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, place: str, limit: str, used: str, cached: str
) -> None:
    """Of each group around the process; the kernel's copies of files would make room."""
    proc, groups = tmp_path / "proc", tmp_path / "groups"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal: 99 kB\nMemAvailable:   50000 kB\n")
    (proc / "self" / "cgroup").write_text(f"9:cpu:/other\n{line}\n")
    own = groups / place
    own.mkdir(parents=True)
    (own / limit).write_text("max\n")
    (own / used).write_text("5000000\n")
    (own.parent / limit).write_text("9000000\n")
    (own.parent / used).write_text("5000000\n")
    monkeypatch.setattr(memory, "_PROC", proc)
    monkeypatch.setattr(memory, "_CGROUPS", groups)
    assert free_host() == 4_000_000
    (own.parent / "memory.stat").write_text(f"anon 7\n{cached} 1000000\n")
    assert free_host() == 5_000_000
    (own.parent / limit).write_text("max\n")
    assert free_host() == 50_000 * 1024
