"""Files of weights: where they are, what they hold, and how to read them without holding them twice.

Pickled files are read with ``weights_only=True``: tensors and plain values, and in place of the few classes that training
frameworks leave in such files an object that does nothing. What they hold is no larger than they are.
"""

import math
import mmap
import re
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from qdexp.errors import UserError
from qdexp.files import read_json, read_text, sha256

PICKLED = (".ckpt", ".bin", ".pt", ".pth")
FILE_NAMES = tuple(
    f"diffusion_pytorch_model.{ending}" for ending in ("safetensors", "safetensors.index.json", "bin", "bin.index.json")
)
"""The names of weights in diffusers, in the order in which they are looked for; an index names the parts of large ones."""

ENCODER_NAMES = tuple(f"{stem}{part}" for stem in ("model.safetensors", "pytorch_model.bin") for part in ("", ".index.json"))
"""The names of weights in transformers, in the order in which they are looked for."""

NETWORKS = ("unet", "transformer")
"""The places of the network in a pipeline's folder."""

CHUNK = 2**27
"""Bytes read at a time, about: what was read of a mapped file counts as memory for as long as the file is open."""

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_LEFT_BY_TRAINING = (
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
    "pytorch_lightning.utilities.parsing.AttributeDict",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.dtype",
    "_codecs.encode",
)
"""Names in the pickles of published checkpoints. What they stand for is neither imported nor called."""


class Inert:
    """Whatever a pickle makes of a name that it may name."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def find(weights: str, subfolder: str, fetch: bool = True) -> list[Path]:
    """The files behind the path of a file, of a diffusers folder, or a name on the Hugging Face hub.

    ``subfolder``: where in the folder they lie; "": at its top, or where pipelines have their networks. Raises as ``find_in``
    does.
    """
    path = Path(weights)
    if path.is_file():
        return [path]
    folders = (subfolder, "") if subfolder else ("", *NETWORKS)
    return find_in(weights, [str(Path(folder) / name) for folder in folders for name in FILE_NAMES], fetch)


def find_in(weights: str, names: Sequence[str], fetch: bool = True) -> list[Path]:
    """The first of ``names`` in a folder or in a repository of the Hugging Face hub; of an index, the parts that it names.

    From the hub they come by way of its cache; what it lacks is fetched, or with ``fetch=False`` missing. Raises
    FileNotFoundError, whose message says where was looked for what.
    """
    path = Path(weights)
    if path.is_dir():
        first = next((path / name for name in names if (path / name).is_file()), None)
        if first is None:
            raise FileNotFoundError(f"{_lacking(names)} in this folder")
        return [first.with_name(part) for part in _parts(first)]
    if path.is_file():
        raise FileNotFoundError(f"{_lacking(names)} in a single file")
    if _HUB_NAME.fullmatch(weights) and path.suffix not in (*PICKLED, ".safetensors"):
        name = _first_on_hub(weights, names, fetch)
        parts = _parts(Path(hf_hub_download(weights, name, local_files_only=True)))
        names = [str(Path(name).with_name(part)) for part in parts]
        return [Path(hf_hub_download(weights, part, local_files_only=not fetch)) for part in names]
    raise FileNotFoundError("no such file" if path.is_absolute() else f"no such file in {Path.cwd()}")


def _lacking(names: Sequence[str]) -> str:
    return f"no {names[0]}{' or .bin' if any(name.endswith('.bin') for name in names) else ''}"


def _first_on_hub(repository: str, names: Sequence[str], fetch: bool) -> str:
    """The first of ``names`` that the cache has; else the first that the hub has, fetched into the cache."""
    for local in (True, False) if fetch else (True,):
        for name in names:
            try:
                hf_hub_download(repository, name, local_files_only=local)
                return name
            except LocalEntryNotFoundError:
                if not local:
                    break  # no connection: the other names cannot be fetched either
            except EntryNotFoundError:
                continue
            except (HfHubHTTPError, HFValidationError, OSError):
                break
    raise FileNotFoundError(f"{_lacking(names)} in the hub's cache{', and it cannot be fetched' if fetch else ''}")


def _parts(file: Path) -> list[str]:
    """The names of the files that an index names; of any other file its own."""
    if not file.name.endswith(".index.json"):
        return [file.name]
    try:
        parts = sorted(set(read_json(file)["weight_map"].values()))
        if parts and all(Path(part).name == part and part.endswith((".safetensors", ".bin")) for part in parts):
            return parts
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    raise FileNotFoundError(f"{file.name} is no index of weights in this folder")


def _first_word(file: Path) -> str:
    """The first word in lower case; "" where the file is no text."""
    try:
        return "".join(read_text(file).lower().split()[:1])
    except ValueError:
        return ""


class WeightFiles:
    """Named tensors in one or more files.

    Raises UserError, one line that begins with ``option``, where a file is truncated, or pickled and wants to run code.
    """

    def __init__(self, files: Iterable[Path], option: str) -> None:
        self.files, self.option = list(files), option
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.sizes: dict[str, int] = {}
        """Bytes of each tensor."""
        self._file_of: dict[str, Path] = {}
        for file in self.files:
            for name, (shape, size) in self._listed(file).items():
                self.shapes[name], self.sizes[name], self._file_of[name] = shape, size, file

    def check_digests(self) -> None:
        """Raises UserError where a file differs from a ``.sha256`` file beside it."""
        for file in self.files:
            stated = file.with_name(file.name + ".sha256")
            if stated.is_file() and _first_word(stated) != sha256(file):
                why = f"its digest is not the one in {stated.name}; the file is corrupt or not the one meant"
                raise UserError(f"{self.option}: {why}")

    def read(self, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
        """The tensors of these names, some at a time: views of a mapped file, to be copied before the next ones are taken."""
        for file, chunk in self._chunks(names):
            if file.suffix in PICKLED:
                held = self._unpickled(file)
                yield {name: held[name] for name in chunk}
                del held
            else:
                with safe_open(file, framework="pt") as opened:
                    yield {name: opened.get_tensor(name) for name in chunk}

    def tensor(self, name: str) -> Tensor:
        """One tensor, copied."""
        return next(self.read([name]))[name].clone()

    def _chunks(self, names: Iterable[str]) -> Iterator[tuple[Path, list[str]]]:
        chunk: list[str] = []
        size = 0
        for name in sorted(names, key=lambda name: str(self._file_of[name])):
            if chunk and (size > CHUNK or self._file_of[name] != self._file_of[chunk[0]]):
                yield self._file_of[chunk[0]], chunk
                chunk, size = [], 0
            chunk.append(name)
            size += 4 * torch.Size(self.shapes[name]).numel()
        if chunk:
            yield self._file_of[chunk[0]], chunk

    def _listed(self, file: Path) -> dict[str, tuple[tuple[int, ...], int]]:
        """Shape and bytes of each tensor."""
        if file.suffix in PICKLED:
            self._check_size(file)
            return {name: (tuple(value.shape), value.nbytes) for name, value in self._unpickled(file).items()}
        try:
            with safe_open(file, framework="pt") as opened:
                slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
                return {name: (tuple(part.get_shape()), _bytes(part)) for name, part in slices.items()}
        except (SafetensorError, OSError) as error:
            raise self._torn(f"not a whole safetensors file ({error})") from error

    def _unpickled(self, file: Path) -> dict[str, Tensor]:
        """The tensors of the state dict in ``file``, mapped where its format can be."""
        allowed: list[Any] = [(Inert, name) for name in _LEFT_BY_TRAINING]
        try:
            with torch.serialization.safe_globals(allowed):
                held = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
        except Exception as error:  # whatever comes of bytes that are no pickle
            code = re.search(r"GLOBAL ([\w.]+)", str(error))
            if code is None:
                raise self._torn("not a whole checkpoint") from error
            raise UserError(f"{self.option}: it names {code[1]}, which could run code; only tensors and plain values are read "
                            f"from such a file, export it as safetensors where you trust it") from error  # fmt: skip
        state = held.get("state_dict", held) if isinstance(held, dict) else {}
        named = state.items() if isinstance(state, dict) else ()
        tensors = {str(name): value for name, value in named if isinstance(value, Tensor)}
        if not tensors:
            raise self._torn("it holds no named tensors")
        for name, value in tensors.items():
            plain = value.layout == torch.strided and value.device.type == "cpu"
            if not plain or value.numel() * value.element_size() > value.untyped_storage().nbytes():
                raise self._torn(f"{name} has more values than the file")
        return tensors

    def _check_size(self, file: Path) -> None:
        """Raises UserError where reading would take more memory than the file has bytes: what is unpacked, or made by a number.

        PyTorch compresses nothing, and no state dict holds the one type that ``weights_only`` lets a file make at any size.
        """
        try:
            if zipfile.is_zipfile(file):
                with zipfile.ZipFile(file) as archive:
                    parts = archive.infolist()
                    stored = all(part.compress_type == zipfile.ZIP_STORED for part in parts)
                    pickles = [part for part in parts if part.filename.endswith(".pkl")] if stored else []
                    made = any(b"bytearray" in archive.read(part) for part in pickles)
            else:
                with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
                    stored, made = True, content.find(b"bytearray") >= 0
        except (OSError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
            raise self._torn("not a whole checkpoint") from error
        if not stored or made:
            raise self._torn("it takes far more memory than it has bytes")

    def _torn(self, what: str) -> UserError:
        return UserError(f"{self.option}: {what}; fetch or export it again")


def _bytes(part: Any) -> int:
    """The bytes of a tensor in a safetensors file, whose dtype is called F16, BF16, F8_E4M3, I64, BOOL."""
    bits = re.search(r"\d+", part.get_dtype())
    return math.prod(part.get_shape()) * (int(bits[0]) if bits else 8) // 8
