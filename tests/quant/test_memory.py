import gc
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DModel
from quant_helpers import batches
from torch import Tensor, nn

from qdexp.errors import UserError
from qdexp.files import PART
from qdexp.quant.adapter import Adapter
from qdexp.quant.blocks import Rows, first_row
from qdexp.quant.filed import Filed
from qdexp.quant.memory import Memory
from qdexp.quant.streams import streaming

WIDTH = 64
ROWS = 32
LAYERS = ["first", "second", "third"]
KEPT: list[Tensor] = []


class Chain(nn.Module):
    """Three layers, on rows of which a batch makes 8 KiB; what lies between them is up to a subclass."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.third(self.second(self.first(x)))
        return y


class Aliasing(Chain):
    """Holds views of what a layer returned, and changes them in place while they are pending."""

    def forward(self, x: Tensor) -> Tensor:
        whole = self.first(x)
        half, turned = whole[:, : WIDTH // 2], {"in": [whole.t()]}
        y = self.second(x)
        half.add_(1)
        y = self.third(y + whole)
        turned["in"][0].mul_(2)
        return y + whole + half.repeat(1, 2)


class Caching(Chain):
    """Keeps what its first pass computed: in an attribute, in a list of one, or where no module knows of it."""

    table: Tensor | None = None

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where, self.tables = where, list[Tensor]()

    def forward(self, x: Tensor) -> Tensor:
        if self.where == "attribute":
            self.table = table = torch.ones(WIDTH, WIDTH).cumsum(0) if self.table is None else self.table
        else:
            tables = self.tables if self.where == "list" else KEPT
            if not tables:
                tables.append(torch.ones(WIDTH, WIDTH).cumsum(0))
            table = tables[0]
        y: Tensor = self.third(self.second(self.first(x @ table)) @ table)
        return y @ table


def rows_of(count: int = 3) -> list[tuple[Tensor]]:
    """Batches that are views of one tensor."""
    return [(part,) for part in torch.randn(count * ROWS, WIDTH).split(ROWS)]


def outputs(network: nn.Module, data: Sequence[tuple[Tensor]], memory: Memory) -> list[Tensor]:
    """Of all blocks, all rows."""
    found = []
    with memory, streaming(network, LAYERS, data, memory) as stream:
        for _ in LAYERS:
            joined = memory.join(of_one(stream.advance()))
            found.append(joined[:].clone())
            del joined
    return found


def of_one(results: Sequence[tuple[Tensor, ...]]) -> list[Tensor]:
    """What a block returned to each batch, where that is one tensor."""
    return [result for (result,) in results]


def equal(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return all(torch.equal(mine, theirs) for mine, theirs in zip(one, other, strict=True))


def test_aliases_stay_aliases(tmp_path: Path) -> None:
    network, data = Aliasing(), rows_of()
    seen: list[list[float]] = []
    network.third.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten().tolist()))
    assert equal(outputs(network, data, Memory(1, tmp_path, [network])), outputs(network, data, Memory()))
    assert seen[:3] == seen[3:]


@pytest.mark.parametrize("where", ["attribute", "list", "outside"])
def test_what_a_network_keeps_from_pass_to_pass(tmp_path: Path, where: str) -> None:
    """Modules' attributes are read by a block that runs outside of its passes, too; they stay in memory."""
    network, data = Caching(where), rows_of()
    KEPT.clear()
    with Memory(1, tmp_path, [network]) as memory, streaming(network, LAYERS, data, memory) as stream:
        stream.advance()
        kept = [network.table] if network.table is not None else [*network.tables, *KEPT]
        assert [bool(table.untyped_storage().nbytes()) for table in kept] == [where != "outside"]
    assert torch.equal(kept[0], torch.ones(WIDTH, WIDTH).cumsum(0)), "whoever keeps it may read it in the end"
    KEPT.clear()
    expected = outputs(Memoryless(network), data, Memory())
    again = Caching(where)
    again.load_state_dict(network.state_dict())
    assert equal(outputs(again, data, Memory(1, tmp_path, [again])), expected)
    KEPT.clear()


class Memoryless(Chain):
    """`Caching` that keeps nothing."""

    def __init__(self, other: Chain) -> None:
        super().__init__()
        self.load_state_dict(other.state_dict())

    def forward(self, x: Tensor) -> Tensor:
        table = torch.ones(WIDTH, WIDTH).cumsum(0)
        y: Tensor = self.third(self.second(self.first(x @ table)) @ table)
        return y @ table


def test_batches_and_parameters_are_never_touched(tmp_path: Path) -> None:
    network, data = Chain(), rows_of()
    with Memory(1, tmp_path, [network]) as memory, streaming(network, LAYERS, data, memory) as stream:
        for _ in LAYERS:
            for tensor in (*network.parameters(), *(x for (x,) in data)):
                assert tensor.untyped_storage().nbytes() >= tensor.nbytes > 0
            stream.advance()


def live() -> dict[int, int]:
    """The bytes of all storages of tensors that are alive."""
    tensors = (each for each in gc.get_objects() if type(each) in (Tensor, nn.Parameter) and each.device.type == "cpu")
    return {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}


def test_no_more_is_held_than_the_limit(tiny_unet: UNet2DModel, tmp_path: Path) -> None:
    """All tensors that are alive are counted, whoever holds them; storages of less than a page are left over."""
    data = batches(16, 4)
    blocks = Adapter(tiny_unet, first_row(data[0])).blocks
    gc.collect()
    known = live()
    gc.freeze()  # those that are there already are not looked at again
    held: dict[int | None, list[int]] = {}
    for limit in (None, 200_000, 1):
        with Memory(limit, tmp_path, [tiny_unet]) as memory, streaming(tiny_unet, list(blocks), data, memory) as stream:
            held[limit] = []
            for has_rows in blocks.values():
                rows = Rows(stream.calls, has_rows, stream.sizes, memory)
                targets = memory.join(of_one(stream.advance()))
                held[limit].append(sum(size for key, size in live().items() if key not in known))
                del rows, targets
    gc.unfreeze()
    left_over = 30_000
    assert max(held[None]) > 5 * 200_000
    assert max(held[200_000]) <= 200_000 + left_over
    assert max(held[200_000]) > 150_000, "the room that there is gets used"
    assert max(held[1]) <= left_over


@pytest.mark.parametrize("kind", ["tokens", "image", "channels_last", "one channel", "bfloat16", "flags"])
def test_rows_in_a_file_are_laid_out_as_rows_in_memory(tmp_path: Path, kind: str) -> None:
    shape = {"tokens": (9, 5, 6), "flags": (9, 7), "one channel": (9, 1, 4, 4)}.get(kind, (9, 3, 4, 4))
    x = torch.randn(shape)
    if kind in ("channels_last", "one channel"):
        x = x.to(memory_format=torch.channels_last)
    x = {"bfloat16": x.bfloat16(), "flags": x > 0}.get(kind, x)
    parts = [part.clone() for part in x.split(4)]
    with Memory(1, tmp_path) as memory:
        filed, joined = memory.join(parts), torch.cat(parts)
        assert isinstance(filed, Filed)
        for index in (torch.tensor([8, 0, 3, 3]), torch.arange(9), slice(2, 7), slice(0, 1), slice(None)):
            assert torch.equal(filed[index], joined[index])
            assert filed[index].stride() == joined[index].stride()
            assert filed[index].dtype == joined.dtype
        assert len(list(tmp_path.iterdir())) == 1
        del filed
        assert not list(tmp_path.iterdir())
        in_memory = Memory().join(parts)
        assert isinstance(in_memory, Tensor)
        assert torch.equal(in_memory, joined) and in_memory.stride() == joined.stride()


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("rows", [slice(3), slice(3, 7), slice(4, 8), slice(7, None), slice(None)])
def test_some_rows_of_many_parts(tmp_path: Path, rows: slice, dtype: torch.dtype | None) -> None:
    x = torch.randn(9, 3, 4, 4).to(memory_format=torch.channels_last)
    parts = [part.clone() for part in x.split(4)]
    expected = torch.cat(parts)[rows].to(dtype or torch.float32)
    with Memory(1, tmp_path) as memory:
        for joined in (memory.join(parts, rows, dtype), Memory().join(parts, rows, dtype)):
            assert torch.equal(joined[:], expected)
            assert joined[:].stride() == expected.stride() and joined[:].dtype == expected.dtype
        flags = [part > 0 for part in parts]
        assert torch.equal(Memory().join(flags, rows, dtype)[:], (expected > 0)), "only floats are kept in fewer bits"


def test_rows_come_first(tmp_path: Path) -> None:
    """What passes hold makes room for them; only for what does not fit beside other rows there is a file."""
    network, data = Chain(), rows_of()
    size = 2 * 3 * ROWS * WIDTH * 4  # of what a layer returned to all passes, and of copies for whom asks for its outputs
    with Memory(size, tmp_path, [network]) as memory, streaming(network, LAYERS, data, memory) as stream:
        results = of_one(stream.advance())
        assert not list(tmp_path.iterdir()), "exactly as much as there is room for"
        one = memory.join(results)
        assert isinstance(one, Tensor) and len(list(tmp_path.iterdir())) == 3
        two = memory.join(results)
        assert isinstance(two, Tensor) and len(list(tmp_path.iterdir())) == 6
        assert not any(result.untyped_storage().nbytes() for result in results)
        assert isinstance(memory.join(results), Filed)
        del two
        assert isinstance(memory.join(results), Tensor), "the room of rows that are gone is free again"


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """A disk that takes no file of more bytes: the system refuses the write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [5000, 10_000])
def test_a_disk_that_refuses(tmp_path: Path, size: int) -> None:
    """What a pass holds (8 KiB), or only the joined rows (24 KiB)."""
    network, data = Chain(), rows_of()
    with largest_file(size), pytest.raises(UserError, match=r"^recon\.cache_gb: .*File too large.*run again") as caught:
        outputs(network, data, Memory(1, tmp_path, [network]))
    assert "\n" not in str(caught.value)
    del caught
    gc.collect()
    assert not list(tmp_path.iterdir())
    assert equal(outputs(network, data, Memory(1, tmp_path, [network])), outputs(network, data, Memory()))


@pytest.mark.parametrize("fault", ["gone", "short"])
@pytest.mark.parametrize("reader", ["pass", "rows"])
def test_a_file_that_is_not_what_it_was(tmp_path: Path, fault: str, reader: str) -> None:
    network, data = Chain(), rows_of()
    with (
        pytest.raises(UserError, match=r"^recon\.cache_gb: .*(No such file|cut short)") as caught,
        Memory(1, tmp_path, [network]) as memory,
        streaming(network, LAYERS, data, memory) as stream,
    ):
        results = of_one(stream.advance())
        for path in tmp_path.glob(f"{PART}*"):
            path.unlink() if fault == "gone" else path.write_bytes(path.read_bytes()[:-1])
        if reader == "pass":
            stream.advance()
        else:
            memory.join(results)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in network.modules())


def test_two_memories_in_one_folder_read_what_is_theirs(tmp_path: Path) -> None:
    """Two processes may be at one entry where a file system has no locks."""
    network, data = Chain(), [rows_of(), rows_of()]
    with (
        Memory(1, tmp_path, [network]) as one,
        Memory(1, tmp_path, [network]) as other,
        streaming(network, LAYERS, data[0], one) as mine,
        streaming(network, LAYERS, data[1], other) as theirs,
    ):
        results = [of_one(mine.advance()), of_one(theirs.advance())]
        for memory, parts, batches in zip((one, other), results, data, strict=True):
            expected = torch.cat([network.first(x) for (x,) in batches])
            assert torch.equal(memory.join(parts)[:], expected)
        del results
    assert not list(tmp_path.iterdir())


def test_files_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    (tmp_path / f"{PART}cache-killed-0").write_bytes(b"old")
    (tmp_path / "weights-0000.safetensors").write_bytes(b"kept")
    network, data = Chain(), rows_of()
    assert equal(outputs(network, data, Memory(1, tmp_path, [network])), outputs(network, data, Memory()))
    assert [path.name for path in tmp_path.iterdir()] == ["weights-0000.safetensors"]
