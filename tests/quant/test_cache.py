import gc
import resource
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DModel
from quant_helpers import batches
from torch import Tensor, nn

from qdexp.errors import UserError
from qdexp.quant.adapter import Adapter
from qdexp.quant.ahead import Reader, each
from qdexp.quant.blocks import Rows, first_row
from qdexp.quant.cache import Budgets, RowCache
from qdexp.quant.scratch import Scratch
from qdexp.quant.stored import InHost, InScratch, OnDevice, Stored
from qdexp.quant.streams import streaming

WIDTH = 64
ROWS = 32
LAYERS = ["first", "second", "third"]
KEPT: list[Tensor] = []
CPU = torch.device("cpu")


def cache_of(folder: Path, *networks: nn.Module, device: int | None = 1, host: int | None = 0) -> RowCache:
    """With budgets in bytes, by default of next to nothing."""
    return RowCache(Budgets(device=device, host=host, scratch=folder), CPU, networks)


UNBOUNDED = RowCache(Budgets(), CPU)


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


class Table(nn.Module):
    """Hands out one and the same tensor, that it keeps in an attribute, in a list, or where no module knows of it."""

    table: Tensor | None = None

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where, self.tables = where, list[Tensor]()

    def forward(self) -> Tensor:
        if self.where == "attribute":
            self.table = table = torch.ones(WIDTH, WIDTH).cumsum(0) if self.table is None else self.table
            return table
        tables = self.tables if self.where == "list" else KEPT
        if not tables:
            tables.append(torch.ones(WIDTH, WIDTH).cumsum(0))
        return tables[0]


class Caching(Chain):
    """Its passes share a table."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.table = Table(where)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.third(self.second(self.first(x) @ self.table()) @ self.table())
        return y @ self.table()


def rows_of(count: int = 3) -> list[tuple[Tensor]]:
    """Batches that are views of one tensor."""
    return [(part,) for part in torch.randn(count * ROWS, WIDTH).split(ROWS)]


def outputs(network: nn.Module, data: Sequence[tuple[Tensor]], cache: RowCache) -> list[Tensor]:
    """Of all blocks, all rows."""
    found = []
    with cache, streaming(network, LAYERS, data, cache) as stream:
        for _ in LAYERS:
            joined = cache.join(of_one(stream.advance()))
            found.append(joined[:].clone())
            del joined
    return found


def of_one(results: Sequence[tuple[Tensor, ...]]) -> list[Tensor]:
    """What a block returned to each batch, where that is one tensor."""
    return [result for (result,) in results]


def equal(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return all(torch.equal(mine, theirs) for mine, theirs in zip(one, other, strict=True))


def parked(tensors: Sequence[Tensor]) -> list[bool]:
    return [not tensor.untyped_storage().nbytes() for tensor in tensors]


@pytest.mark.parametrize("host", [0, None])
def test_aliases_stay_aliases(tmp_path: Path, host: int | None) -> None:
    network, data = Aliasing(), rows_of()
    seen: list[list[float]] = []
    network.third.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten().tolist()))
    assert equal(outputs(network, data, cache_of(tmp_path, network, host=host)), outputs(network, data, UNBOUNDED))
    assert seen[:3] == seen[3:]


@pytest.mark.parametrize("where", ["attribute", "list", "outside"])
def test_what_passes_share_stays(tmp_path: Path, where: str) -> None:
    """Others read it too, such as a block that runs outside of the passes."""
    network, data = Caching(where), rows_of()
    KEPT.clear()
    expected = outputs(network, data, UNBOUNDED)
    again = Caching(where)
    again.load_state_dict(network.state_dict())
    KEPT.clear()
    cache = cache_of(tmp_path, again)
    with cache, streaming(again, LAYERS, data, cache) as stream:
        for one in expected:
            results = of_one(stream.advance())
            assert torch.equal(again.table(), torch.ones(WIDTH, WIDTH).cumsum(0))
            assert torch.equal(cache.join(results)[:], one)
            assert parked(results)[:2] == [True, True]
    KEPT.clear()


def test_what_outlives_the_passes_may_be_read(tmp_path: Path) -> None:
    network, data = Chain(), rows_of()
    cache = cache_of(tmp_path, network)
    with cache, streaming(network, LAYERS, data, cache) as stream:
        results = of_one(stream.advance())
        assert any(parked(results))
    assert equal(results, [network.first(x) for (x,) in data])


def test_batches_and_parameters_are_never_touched(tmp_path: Path) -> None:
    network, data = Chain(), [(x.clone(),) for (x,) in rows_of()]
    cache = cache_of(tmp_path, network)
    with cache, streaming(network, LAYERS, data, cache) as stream:
        for _ in LAYERS:
            assert not any(parked([*network.parameters(), *(x for (x,) in data)]))
            stream.advance()


def live() -> dict[int, int]:
    """The bytes of all storages of tensors that are alive."""
    tensors = (one for one in gc.get_objects() if type(one) in (Tensor, nn.Parameter) and one.device.type == "cpu")
    storages = {id(tensor.untyped_storage()): tensor.untyped_storage() for tensor in tensors}
    return {key: storage.nbytes() for key, storage in storages.items()}


def test_no_more_is_held_than_the_budget_and_a_batch(tiny_unet: UNet2DModel, tmp_path: Path) -> None:
    """All tensors that are alive are counted, whoever holds them; the pass that ran last may still hold its own, and storages
    of less than a page are left over."""
    data = batches(4, 12)
    blocks = Adapter(tiny_unet, first_row(data[0])).blocks
    gc.collect()
    known = live()
    gc.freeze()  # those that are there already are not looked at again
    held: dict[int | None, list[int]] = {}
    for budget in (None, 300_000, 1):
        cache = cache_of(tmp_path, tiny_unet, device=budget)
        with cache, streaming(tiny_unet, list(blocks), data, cache) as stream:
            held[budget] = []
            for has_rows in blocks.values():
                rows = Rows(stream.calls, has_rows, stream.sizes, cache)
                targets = cache.join(of_one(stream.advance()))
                held[budget].append(sum(size for key, size in live().items() if key not in known))
                del rows, targets
    gc.unfreeze()
    left_over = 60_000
    batch = max(held[None]) / 12
    assert max(held[None]) > 1.5 * 300_000
    assert max(held[300_000]) <= 300_000 + batch + left_over
    assert max(held[300_000]) > 200_000, "the room that there is gets used"
    assert max(held[1]) <= batch + left_over


@pytest.mark.parametrize("kind", ["tokens", "image", "channels_last", "one channel", "bfloat16", "flags"])
def test_rows_are_laid_out_the_same_in_every_tier(tmp_path: Path, kind: str) -> None:
    shape = {"tokens": (9, 5, 6), "flags": (9, 7), "one channel": (9, 1, 4, 4)}.get(kind, (9, 3, 4, 4))
    x = torch.randn(shape)
    if kind in ("channels_last", "one channel"):
        x = x.to(memory_format=torch.channels_last)
    x = {"bfloat16": x.bfloat16(), "flags": x > 0}.get(kind, x)
    parts = [part.clone() for part in x.split(4)]
    joined = torch.cat(parts)
    for cache, tier in (
        (cache_of(tmp_path), InScratch),
        (cache_of(tmp_path, host=None), InHost),
        (UNBOUNDED, OnDevice),
    ):
        with cache:
            rows = cache.join(parts)
            assert type(rows) is tier
            for index in (torch.tensor([8, 0, 3, 3]), torch.arange(9), slice(2, 7), slice(0, 1), slice(None)):
                assert torch.equal(rows[index], joined[index])
                assert rows[index].stride() == joined[index].stride()
                assert rows[index].dtype == joined.dtype
    assert not list(tmp_path.iterdir()), "its file has no name"


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
@pytest.mark.parametrize("rows", [slice(3), slice(3, 7), slice(4, 8), slice(7, None), slice(None)])
def test_some_rows_of_many_parts(tmp_path: Path, rows: slice, dtype: torch.dtype | None) -> None:
    x = torch.randn(9, 3, 4, 4).to(memory_format=torch.channels_last)
    parts = [part.clone() for part in x.split(4)]
    expected = torch.cat(parts)[rows].to(dtype or torch.float32)
    with cache_of(tmp_path) as cache:
        for joined in (cache.join(parts, rows, dtype), UNBOUNDED.join(parts, rows, dtype)):
            assert torch.equal(joined[:], expected)
            assert joined[:].stride() == expected.stride() and joined[:].dtype == expected.dtype
        flags = [part > 0 for part in parts]
        assert torch.equal(UNBOUNDED.join(flags, rows, dtype)[:], (expected > 0)), "only floats are kept in fewer bits"


def test_rows_come_first_and_each_tier_is_filled_before_the_next(tmp_path: Path) -> None:
    network, data = Chain(), rows_of(4)
    size = 4 * ROWS * WIDTH * 4  # of joined rows
    cache = cache_of(tmp_path, network, device=2 * size, host=size)
    with cache, streaming(network, LAYERS, data, cache) as stream:
        results = of_one(stream.advance())
        assert not any(parked(results)), "exactly as much as there is room for, beside what passes hold"
        tiers: list[Stored] = [cache.join(results)]
        assert parked(results) == [False, True, True, False], "the first waits least; none has seen yet what the last one holds"
        tiers += [cache.join(results) for _ in range(3)]
        assert [type(one) for one in tiers] == [OnDevice, OnDevice, InHost, InScratch]
        assert all(torch.equal(one[:], tiers[0][:]) for one in tiers)
        del tiers[0]
        assert isinstance(cache.join(results), OnDevice), "the room of rows that are gone is free again"


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """A disk that takes no file of more bytes: the system refuses the write."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [5000, 40_000])
def test_a_disk_that_refuses(tmp_path: Path, size: int) -> None:
    """What a pass holds (8 KiB), or only the joined rows."""
    network, data = Chain(), rows_of()
    with largest_file(size), pytest.raises(UserError, match=r"^memory\.scratch=.*File too large.*run again") as caught:
        outputs(network, data, cache_of(tmp_path, network))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in network.modules())
    assert equal(outputs(network, data, cache_of(tmp_path, network)), outputs(network, data, UNBOUNDED))


def test_pieces_of_a_file_are_written_over_once_they_are_given_back(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path)
    places = [scratch.take(10) for _ in range(4)]
    for place, text in zip(places, (b"0123456789", b"abcdefghij", b"ABCDEFGHIJ", b"9876543210"), strict=True):
        scratch.write(place, memoryview(text))
    found = bytearray(10)
    scratch.read(places[2], memoryview(found))
    assert found == b"ABCDEFGHIJ"
    for place in (places[2], places[0], places[1]):
        scratch.give(place, 10)
    assert [scratch.take(size) for size in (25, 5, 10)] == [0, 25, 40], "neighbours are one piece again"
    with pytest.raises(UserError, match="cut short"):
        scratch.read(35, memoryview(bytearray(10)))
    scratch.close()


def test_two_caches_in_one_folder_read_what_is_theirs(tmp_path: Path) -> None:
    network, data = Chain(), [rows_of(), rows_of()]
    caches = [cache_of(tmp_path, network) for _ in data]
    with (
        caches[0],
        caches[1],
        streaming(network, LAYERS, data[0], caches[0]) as mine,
        streaming(network, LAYERS, data[1], caches[1]) as theirs,
    ):
        results = [of_one(mine.advance()), of_one(theirs.advance())]
        for cache, parts, given in zip(caches, results, data, strict=True):
            expected = torch.cat([network.first(x) for (x,) in given])
            assert torch.equal(cache.join(parts)[:], expected)


@pytest.mark.parametrize("ahead", [False, True])
def test_what_is_read_ahead_comes_in_order_and_its_errors_in_their_turn(ahead: bool) -> None:
    begun: list[int] = []

    def read(key: int) -> Tensor:
        begun.append(key)
        if key == 3:
            raise ArithmeticError(key)
        return torch.tensor(key)

    reader = Reader(CPU) if ahead else None
    found: list[int] = []
    with pytest.raises(ArithmeticError):
        found.extend(int(one) for one in each(reader, read, range(5)))
    assert found == [0, 1, 2] and begun[:4] == [0, 1, 2, 3]
    rows: Callable[[int], Tensor] = lambda key: torch.arange(key)  # noqa: E731
    assert [len(one) for one in each(reader, rows, range(4))] == [0, 1, 2, 3]
    if reader is not None:
        reader.close()
