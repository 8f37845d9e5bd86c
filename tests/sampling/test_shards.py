import os
import resource
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import PROCESSES
from safetensors.torch import load_file
from torch import Tensor, nn

import qdexp
from qdexp.config import Model, Protocol
from qdexp.files import sha256
from qdexp.sampling.noise import draw, generators
from qdexp.sampling.sampler import Sampler, to_images
from qdexp.sampling.shards import Images, Recording, Sampling, Stream, read_shards, shard_path, write_shards

CPU = torch.device("cpu")
BATCH, N = 7, 40  # five full shards and one of five rows
STREAM = Stream("evaluation", 0, N, BATCH)

Write = Callable[..., Path]


class Dying(nn.Module):
    """A network whose process is killed during the call with number `last`."""

    def __init__(self, network: nn.Module, last: int) -> None:
        super().__init__()
        self.network, self.left = network, last

    def forward(self, x_t: Tensor, t: Tensor) -> Any:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.network(x_t, t)


def sample_in_process(saved: Path, folder: Path, sampler: tuple[Model, Protocol], shards: Sequence[int], last: int) -> None:
    torch.set_num_threads(1)  # as tests/conftest.py says
    network = qdexp.load(saved) if last == 0 else Dying(qdexp.load(saved), last)
    write_shards(Sampling(network, Sampler(*sampler), STREAM), folder, CPU, shards)


def digests(folder: Path) -> dict[str, str]:
    return {path.name: sha256(path) for path in sorted(folder.iterdir())}


@pytest.fixture
def write(saved_w4a8: Path, tiny_model: Model, solver: Protocol, tmp_path: Path) -> Write:
    """Samples into a folder of `tmp_path` with the quantized network and returns the folder."""
    network = qdexp.load(saved_w4a8)

    def into(name: str, stream: Stream = STREAM, shards: Sequence[int] | None = None, kind: type[Sampling] = Sampling) -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        write_shards(kind(network, Sampler(tiny_model, solver), stream), folder, CPU, shards)
        return folder

    return into


def images(folder: Path) -> Tensor:
    return torch.cat(list(read_shards(folder, "images")))


def test_how_samples_are_cut_into_shards() -> None:
    assert list(STREAM.shards) == [0, 1, 2, 3, 4, 5]
    assert [STREAM.rows(shard) for shard in STREAM.shards] == [7, 7, 7, 7, 7, 5]
    assert [Stream("evaluation", 0, 14, 7).rows(shard) for shard in range(2)] == [7, 7]
    assert [Stream("evaluation", 0, 3, 7).rows(shard) for shard in range(1)] == [3]


def test_images_are_those_of_the_sampler(write: Write, saved_w4a8: Path, tiny_model: Model, solver: Protocol) -> None:
    folder = write("whole")
    assert [path.name for path in sorted(folder.iterdir())] == [f"shard-{shard:05d}.safetensors" for shard in range(6)]
    assert [len(part) for part in read_shards(folder, "images")] == [7, 7, 7, 7, 7, 5]
    network, sampler = qdexp.load(saved_w4a8), Sampler(tiny_model, solver)
    for shard in (0, 5):
        with torch.inference_mode():
            sources = generators("evaluation", 0, range(shard * BATCH, (shard + 1) * BATCH))
            alone = to_images(sampler.run(network, sources, CPU))
        assert torch.equal(load_file(shard_path(folder, shard))["images"], alone[: STREAM.rows(shard)])
    assert images(folder).dtype == torch.uint8
    assert images(folder).shape == (N, 1, 8, 8)
    assert len(images(folder).flatten(1).unique(dim=0)) == N


def test_images_are_read_in_any_order_a_shard_at_a_time(write: Write) -> None:
    folder = write("whole")
    found = Images(folder)
    assert len(found) == N
    for order in (range(N), range(N - 1, -1, -1), (0, 39, 7, 34, 6)):
        for index in order:
            assert torch.equal(found[index], images(folder)[index])


def test_every_forward_pass_has_exactly_batch_rows(tiny_model: Model, solver: Protocol, tmp_path: Path) -> None:
    rows: list[int] = []

    class Counting(nn.Module):
        def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
            rows.append(len(x_t))
            return x_t

    write_shards(Sampling(Counting(), Sampler(tiny_model, solver), STREAM), tmp_path, CPU)
    assert rows == [BATCH] * (6 * solver.steps)


def test_neither_the_order_of_shards_nor_a_resumed_run_changes_a_byte(write: Write) -> None:
    whole = digests(write("whole"))
    for shards in ([4, 1], [5], [3, 2, 1, 0]):
        pieces = write("pieces", shards=shards)
    assert digests(pieces) == whole
    shard_path(pieces, 2).unlink()
    kept = {path: path.stat().st_mtime_ns for path in pieces.iterdir()}
    assert digests(write("pieces")) == whole
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_processes_and_a_kill_change_no_byte(
    write: Write, saved_w4a8: Path, tiny_model: Model, solver: Protocol, tmp_path: Path
) -> None:
    whole = digests(write("whole"))

    def start(folder: Path, shards: Sequence[int], last: int = 0) -> Any:
        folder.mkdir(exist_ok=True)
        arguments = (saved_w4a8, folder, (tiny_model, solver), shards, last)
        process = PROCESSES.Process(target=sample_in_process, args=arguments)
        process.start()
        return process

    halves = [start(tmp_path / "halves", shards) for shards in ([0, 2, 4], [1, 3, 5])]
    killed = start(tmp_path / "killed", range(6), last=3 * solver.steps + 2)
    for process in (*halves, killed):
        process.join(timeout=120)
    assert [process.exitcode for process in (*halves, killed)] == [0, 0, -signal.SIGKILL]
    assert digests(tmp_path / "halves") == whole
    left = digests(tmp_path / "killed")
    assert left == {shard_path(tmp_path, shard).name: whole[shard_path(tmp_path, shard).name] for shard in range(3)}
    assert digests(write("killed")) == whole


def test_a_file_cut_off_by_a_kill_is_not_taken_for_a_shard(write: Write, tmp_path: Path) -> None:
    whole = write("whole")
    (tmp_path / "torn").mkdir()
    part = tmp_path / "torn" / f".part-{shard_path(tmp_path, 1).name}-1"
    part.write_bytes(shard_path(whole, 1).read_bytes()[:50])
    torn = write("torn", shards=[0])
    assert torch.equal(images(torn), images(whole)[:BATCH])
    write("torn")
    part.unlink()
    assert digests(torn) == digests(whole)


def test_a_full_disk_leaves_no_half_of_a_shard(write: Write, tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))  # a shard has more bytes
    try:
        with pytest.raises(OSError, match="File too large"):
            write("full")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((tmp_path / "full").glob("shard-*"))
    assert images(write("full")).shape == (N, 1, 8, 8)


@pytest.mark.parametrize("n", [1, 7, 11, 35])
def test_the_first_images_do_not_depend_on_n(write: Write, n: int) -> None:
    fewer = images(write("fewer", Stream("evaluation", 0, n, BATCH)))
    assert torch.equal(fewer, images(write("whole"))[:n])


def test_streams_and_seeds_give_other_images(write: Write) -> None:
    first = [images(write(f"{name}{seed}", Stream(name, seed, BATCH, BATCH))) for name, seed in
             (("evaluation", 0), ("evaluation", 1), ("calibration", 0))]  # fmt: skip
    assert len(torch.cat(first).flatten(1).unique(dim=0)) == 3 * BATCH


def test_a_recording_is_the_walk_to_the_images(write: Write, saved_w4a8: Path, tiny_model: Model, solver: Protocol) -> None:
    walk = write("walk", kind=Recording)
    x_t, eps = (torch.cat(list(read_shards(walk, name))) for name in ("x_t", "eps"))
    assert x_t.shape == eps.shape == (N, solver.steps, 1, 8, 8)
    assert x_t.dtype == eps.dtype == torch.float32
    assert torch.equal(x_t[:, 0], draw(generators("evaluation", 0, range(N)), (1, 8, 8)))
    network, timesteps = qdexp.load(saved_w4a8), [int(t) for t in Sampler(tiny_model, solver).timesteps]
    with torch.inference_mode():
        for position, t in enumerate(timesteps):
            answer = network(x_t[:BATCH, position].contiguous(), torch.full((BATCH,), t))[0]
            assert torch.equal(eps[:BATCH, position], answer)
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    bar = (1 - betas).cumprod(0)[timesteps[-1]]
    x_0 = (x_t[:, -1] - (1 - bar).sqrt() * eps[:, -1]) / bar.sqrt()  # the solver's last step leads straight to x_0
    difference = to_images(x_0).int() - images(write("whole")).int()
    assert difference.abs().max() <= 1
    assert (difference != 0).double().mean() < 0.01
