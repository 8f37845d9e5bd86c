"""Text encoders and tokenizers, as they lie in a diffusers folder and as transformers computes them."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from qdexp.errors import UserError
from qdexp.files import read_json
from qdexp.models.conditions import CLIP_TOKENS
from qdexp.models.weights import ENCODER_NAMES, WeightFiles, find_in

Files = dict[str, Path]
"""Files by the roles that they play."""

LARGEST = 20_000
"""Tensors of an encoder, at most: real ones have hundreds."""

_BESIDE_VOCABULARY = ("special_tokens_map.json", "added_tokens.json")


@dataclass(frozen=True)
class TextEncoder:
    """A text encoder of a pipeline: ``folder`` and ``tokenizer`` are its places there, ``kind`` is its class in transformers.
    tokens: how many a prompt has; shorter ones are padded, longer ones cut.

    tokens: how many a prompt has; shorter ones are padded, longer ones cut.
    """

    kind: str = "CLIPTextModel"
    folder: str = "text_encoder"
    tokenizer: str = "tokenizer"
    tokens: int = CLIP_TOKENS

    @property
    def _is_clip(self) -> bool:
        return self.kind.startswith("CLIP")

    def files(self, weights: str) -> Files:
        """Find the encoder's files in a folder or a repository of the hub. Raises FileNotFoundError, see ``find_in``."""
        parts = find_in(weights, [f"{self.folder}/{name}" for name in ENCODER_NAMES])
        config = find_in(weights, [f"{self.folder}/config.json"])
        found = {f"{self.folder}/{path.name}": path for path in (*config, *parts)}
        return found | tokenizer_files(weights, f"{self.tokenizer}/")

    def config(self, files: Files, option: str) -> Any:
        """The encoder's own, as transformers reads it. UserError where it cannot."""
        return load(getattr(transformers, self.kind).config_class, files[f"{self.folder}/config.json"].parent, option)

    def check(self, files: Files, option: str) -> None:
        """Raises UserError where a file is truncated or wants to run code, or is of another kind of encoder."""
        weights = self._weights(files)
        WeightFiles(weights, option).check_digests()
        config = self.config(files, option)
        if self.kind not in (config.architectures or []):
            raise UserError(f"{option}: {self.folder} is {config.architectures}, not {self.kind}; name the folder of the "
                            f"model's own pipeline")  # fmt: skip
        tokenizer = self._load_tokenizer(files, option)
        known, takes = len(tokenizer), config.vocab_size
        if self._is_clip:  # pipelines let these two decide; T5's lengths and masks they give themselves
            if getattr(config, "use_attention_mask", False):
                raise UserError(f"{option}: {self.folder}/config.json says use_attention_mask=true, here padding is attended "
                                f"to as well; set it to false, or name another folder")  # fmt: skip
            if tokenizer.model_max_length not in (self.tokens, VERY_LARGE_INTEGER):  # the latter: it does not say
                raise UserError(f"{option}: {self.tokenizer} says model_max_length={tokenizer.model_max_length}, prompts have "
                                f"{self.tokens} tokens here; name the folder of the model's own pipeline")  # fmt: skip
        if known > takes:
            raise UserError(f"{option}: {self.tokenizer} knows {known} tokens, {self.folder} takes {takes}; take both from "
                            f"the same pipeline")  # fmt: skip

    def load(self, files: Files, option: str, device: torch.device) -> "LoadedEncoder":
        """Load the encoder onto ``device``, in float32. UserError where it cannot be loaded whole."""
        tokenizer = self._load_tokenizer(files, option)
        network = load_network(getattr(transformers, self.kind), self._weights(files)[0].parent, option)
        return LoadedEncoder(tokenizer, network.to(device), self.tokens)

    def _weights(self, files: Files) -> list[Path]:
        return [path for role, path in files.items() if role.startswith(f"{self.folder}/") and path.name != "config.json"]

    def _load_tokenizer(self, files: Files, option: str) -> Any:
        kind = transformers.CLIPTokenizer if self._is_clip else transformers.T5Tokenizer
        return load(kind, files[f"{self.tokenizer}/tokenizer_config.json"].parent, option)


class LoadedEncoder:
    """Encodes texts; ``tokens`` of each, padded or cut."""

    def __init__(self, tokenizer: Any, network: torch.nn.Module, tokens: int) -> None:
        self.tokenizer, self.network, self.tokens = tokenizer, network, tokens

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str], masked: bool = False) -> tuple[Any, Tensor]:
        """The network's output with all its hidden states, and which tokens [n, tokens] are no padding.

        masked: padding is attended to by none. CLIP's encoders were trained without a mask, and T5 with.
        """
        padded = {"padding": "max_length", "max_length": self.tokens, "truncation": True, "return_tensors": "pt"}
        tokens = self.tokenizer(list(texts), **padded).to(next(self.network.parameters()).device)
        mask = tokens.attention_mask if masked else None
        return self.network(tokens.input_ids, mask, output_hidden_states=True), tokens.attention_mask.bool()


def tokenizer_files(weights: str, place: str = "") -> Files:
    """Find the files of the tokenizer at ``place`` ("tokenizer/") in a folder or a repository of the hub. Raises as ``find_in``
    does."""

    def find(*names: str) -> Path:
        return find_in(weights, [place + name for name in names])[0]

    vocabulary = find("vocab.json", "spiece.model", "tokenizer.json")
    found = [find("tokenizer_config.json"), vocabulary]
    found += [find("merges.txt")] if vocabulary.name == "vocab.json" else []
    for name in ("tokenizer.json", *_BESIDE_VOCABULARY):
        with contextlib.suppress(FileNotFoundError):
            found.append(find(name))
    return {place + path.name: path for path in found}


def clip_files(weights: str) -> Files:
    """Find the files of a CLIP model in a folder or a repository of the hub, text and image side together. Raises as
    ``find_in`` does."""
    parts = find_in(weights, ENCODER_NAMES)
    found = {"weights" if number == 0 else f"weights-{number}": path for number, path in enumerate(parts)}
    for names in (["config.json"], ["preprocessor_config.json", "processor_config.json"]):
        (path,) = find_in(weights, names)
        found[path.name] = path
    return found | tokenizer_files(weights)


def load(kind: Any, folder: Path, option: str) -> Any:
    """A tokenizer, a processor or a config of ``kind``. UserError where transformers cannot load it."""
    with _loading(f"{option}: {folder.name}"):
        _check_config(folder)
        return kind.from_pretrained(folder, local_files_only=True)


def load_network(kind: Any, folder: Path, option: str) -> torch.nn.Module:
    """The network of ``kind`` in ``folder``: float32, eval mode. UserError where it cannot be loaded, or lacks a weight."""
    with _loading(f"{option}: {folder.name}"), _of_bounded_size():
        _check_config(folder)
        network, found = kind.from_pretrained(folder, local_files_only=True, dtype=torch.float32, output_loading_info=True)
    if found["missing_keys"]:
        raise UserError(f"{option}: {folder.name} lacks {min(found['missing_keys'])}; fetch or export it again")
    loaded: torch.nn.Module = network.eval().requires_grad_(False)
    return loaded


def _check_config(folder: Path) -> None:
    """Raises ValueError where a config.json asks for code from elsewhere: attention that is named there comes from the hub."""
    waiting = [read_json(folder / "config.json")] if (folder / "config.json").is_file() else []
    while waiting:
        for key, value in waiting.pop().items():
            if key.lstrip("_") == "attn_implementation" and value not in (None, "eager", "sdpa"):
                raise ValueError(f"{key}={value} in its config.json is foreign code")
            if key in ("quantization_config", "use_kernels") and value:
                raise ValueError(f"{key} in its config.json asks for other libraries")
            waiting += [value] if isinstance(value, dict) else []


@contextlib.contextmanager
def _of_bounded_size() -> Iterator[None]:
    """Stops a network with ever more layers: their sizes, but not their number, must be those in the file."""
    left = iter(range(LARGEST))

    def count(module: torch.nn.Module, name: str, parameter: Any) -> None:
        if next(left, None) is None:
            raise ValueError(f"its config.json describes more than {LARGEST:,} tensors")

    handle = torch.nn.modules.module.register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


@contextlib.contextmanager
def _loading(what: str) -> Iterator[None]:
    """Load without transformers' reports and progress bars; its errors become one line."""
    log = transformers.utils.logging
    level, shown = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity(log.CRITICAL)
    log.disable_progress_bar()
    try:
        yield
    except Exception as error:  # the files may hold anything, and so may what transformers raises
        raise UserError(f"{what} cannot be loaded ({' '.join(str(error).split())[:200]}); fetch or export it again") from error
    finally:
        log.set_verbosity(level)
        if shown:
            log.enable_progress_bar()
