"""Prompts as conditions: files of prompts, and what the text encoders of each family make of them.

Sample i of the evaluation shows prompt i, modulo their number. Calibration has prompts of its own (``trajectory.prompts``), or
takes those of the protocol from the last one back, so that it sees others wherever there are enough.
"""

import hashlib
import json
import re
from abc import abstractmethod
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from qdexp import models
from qdexp.config import RANDOM, Config, Model
from qdexp.errors import UserError
from qdexp.files import read_text
from qdexp.models import declared
from qdexp.models.conditioning import CALIBRATION, Conditioning
from qdexp.models.conditions import T5_TOKENS, Condition, example_condition
from qdexp.models.text import Files, LoadedEncoder, TextEncoder

BATCH = 32
"""Prompts that are encoded at once: fixed, since it may change an embedding's last bit."""


class Prompts(Conditioning):
    """The prompts of ``protocol.prompts``, encoded by the text encoders in ``weights``: a diffusers folder or a hub name.

    With ``weights=random`` a prompt's embeddings are drawn from a seed of its own: a rehearsal needs no encoder.
    """

    encoders: ClassVar[tuple[TextEncoder, ...]]

    def __init__(self, weights: str) -> None:
        self.weights = weights
        self._loaded: list[LoadedEncoder] = []

    @property
    def option(self) -> str:
        return f"model.condition.weights={self.weights}"

    def check(self, config: Config) -> None:
        protocol, name = config.protocol, config.model.name
        if protocol.classes is not None:
            raise UserError(f"protocol.classes={protocol.classes}: {name} is conditioned on prompts; leave it out")
        if protocol.prompts is None:
            raise UserError(f"protocol.prompts=null: {name} draws what prompts ask for; name a text file with a prompt a line, "
                            f"or COCO's captions (.json)")  # fmt: skip
        self.wanted(config, "evaluation", 1)
        self.wanted(config, CALIBRATION, 1)
        files = self.files(config.model)
        if files:
            self._check_encoders(files, config.model)

    def _check_encoders(self, files: Files, model: Model) -> None:
        for encoder in self.encoders:
            encoder.check(files, self.option)
        example: dict[str, Any] = example_condition(models.skeleton(model))
        takes = example | example.get("added_cond_kwargs", {})
        for name, width in self.widths([encoder.config(files, self.option) for encoder in self.encoders]).items():
            if width != takes[name].shape[-1]:
                raise UserError(f"{self.option}: its text encoders give {name} of width {width}, model.network takes "
                                f"{takes[name].shape[-1]}; name the folder of the model's own pipeline")  # fmt: skip

    def files(self, model: Model) -> Files:
        if self.weights == RANDOM:
            return {}
        try:
            return {role: path for encoder in self.encoders for role, path in encoder.files(self.weights).items()}
        except FileNotFoundError as error:
            place = model.publisher or "their publisher"
            raise UserError(f"{self.option}: {error}; name a diffusers folder with text encoders and tokenizers (download them "
                            f"from {place}), or rehearse the run with {RANDOM}") from error  # fmt: skip

    def wanted(self, config: Config, stream: str, samples: int) -> Sequence[str]:
        own = config.trajectory.prompts if stream == CALIBRATION else None
        if own is not None:
            return read(Path(own), "trajectory.prompts")[:samples]
        assert config.protocol.prompts is not None
        prompts = read(Path(config.protocol.prompts), "protocol.prompts")
        return (prompts[::-1] if stream == CALIBRATION else prompts)[:samples]

    def named(self, config: Config, stream: str, samples: int) -> dict[str, Any]:
        wanted = json.dumps(self.wanted(config, stream, samples)).encode()
        return {"prompts": hashlib.sha256(wanted).hexdigest()}

    def identity(self, model: Model) -> dict[str, Any]:
        drawn = {"weights": RANDOM, "network": model.network}  # which says in what shapes
        return drawn if self.weights == RANDOM else {"library": version("transformers")}

    def encode(self, wanted: Sequence[str], model: Model, device: torch.device) -> Condition:
        if self.weights == RANDOM:
            return _drawn(wanted, example_condition(models.skeleton(model)))
        if not self._loaded:
            files = self.files(model)
            self._loaded = [encoder.load(files, self.option, device) for encoder in self.encoders]
        parts = [self.encoded([*part, *[""] * (BATCH - len(part))]) for part in _batches(wanted)]
        condition: Condition = pytree.tree_map(lambda *rows: torch.cat(rows)[: len(wanted)].cpu(), *parts)
        return condition

    def nothing(self, model: Model, device: torch.device) -> Condition:
        """The empty prompt."""
        return self.encode([""], model, device)

    @abstractmethod
    def encoded(self, texts: Sequence[str]) -> Condition:
        """Encode texts into the network's conditional arguments, a row per text; the encoders must be loaded."""

    @abstractmethod
    def widths(self, configs: Sequence[Any]) -> dict[str, int]:
        """The widths of what ``encoded`` gives, by the encoders' own configs."""


class StableDiffusionPrompts(Prompts):
    """Prompts of Stable Diffusion 1 and 2: the last states of one CLIP text encoder, [n, 77, d]."""

    encoders = (TextEncoder(),)

    def encoded(self, texts: Sequence[str]) -> Condition:
        output, _ = self._loaded[0](texts)
        return {"encoder_hidden_states": output.last_hidden_state}

    def widths(self, configs: Sequence[Any]) -> dict[str, int]:
        return {"encoder_hidden_states": configs[0].hidden_size}


class XLPrompts(Prompts):
    """Prompts of Stable Diffusion XL (Podell et al., arXiv 2307.01952, section 2): the penultimate states of two CLIP text
    encoders side by side [n, 77, d], the second's pooled and projected state, and the image's size.

    size: pixels of an edge; the network gets it as the original size, with no crop. The condition that asks for nothing has
    zeros in place of states, as the base model's pipeline has.
    """

    encoders = (TextEncoder(), TextEncoder("CLIPTextModelWithProjection", "text_encoder_2", "tokenizer_2"))

    def __init__(self, weights: str, size: int) -> None:
        super().__init__(weights)
        self.size = size

    def _check_encoders(self, files: Files, model: Model) -> None:
        super()._check_encoders(files, model)
        if not declared.declared(self.weights, declared.INDEX, self.option).get("force_zeros_for_empty_prompt", True):
            raise UserError(f"{self.option}: {declared.INDEX} says force_zeros_for_empty_prompt=false, model.condition "
                            f"({type(self).__name__}) gives zeros; name another folder, or a class of yours")  # fmt: skip

    def identity(self, model: Model) -> dict[str, Any]:
        return {**super().identity(model), "size": self.size}

    def encode(self, wanted: Sequence[str], model: Model, device: torch.device) -> Condition:
        condition: dict[str, Any] = super().encode(wanted, model, device)
        sizes = [self.size, self.size, 0, 0, self.size, self.size]  # original height and width, top and left, target's
        condition["added_cond_kwargs"]["time_ids"] = torch.tensor([sizes] * len(wanted), dtype=torch.float32)
        return condition

    def nothing(self, model: Model, device: torch.device) -> Condition:
        condition: dict[str, Any] = self.encode([""], model, device)
        added = condition["added_cond_kwargs"]
        zeros = {"text_embeds": torch.zeros_like(added["text_embeds"]), "time_ids": added["time_ids"]}
        return {"encoder_hidden_states": torch.zeros_like(condition["encoder_hidden_states"]), "added_cond_kwargs": zeros}

    def encoded(self, texts: Sequence[str]) -> Condition:
        first, second = (encoder(texts)[0] for encoder in self._loaded)
        states = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        return {"encoder_hidden_states": states, "added_cond_kwargs": {"text_embeds": second.text_embeds}}

    def widths(self, configs: Sequence[Any]) -> dict[str, int]:
        both = sum(config.hidden_size for config in configs)
        return {"encoder_hidden_states": both, "text_embeds": configs[1].projection_dim}


class PixArtPrompts(Prompts):
    """Prompts of PixArt-alpha (Chen et al., arXiv 2310.00426): the last states of a T5 encoder [n, 120, d], and the mask of
    tokens that are no padding.

    Prompts are lower-cased and stripped, as its pipeline does; web addresses and mark-up in them stay.
    """

    encoders = (TextEncoder("T5EncoderModel", tokens=T5_TOKENS),)

    def encoded(self, texts: Sequence[str]) -> Condition:
        output, mask = self._loaded[0]([text.lower().strip() for text in texts], masked=True)
        return {"encoder_hidden_states": output.last_hidden_state, "encoder_attention_mask": mask}

    def widths(self, configs: Sequence[Any]) -> dict[str, int]:
        return {"encoder_hidden_states": configs[0].d_model}


def read(path: Path, option: str) -> list[str]:
    """The prompts in a text file, one a line, or in COCO's captions (``.json``): of each image, by its number, its first.

    Lines are stripped, empty ones left out; the text is UTF-8, or what its byte order mark says. Raises UserError where there
    is none.
    """
    try:
        prompts = list(_read(path, path.stat().st_mtime_ns))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else "neither lines of UTF-8 text nor COCO's captions"
        raise UserError(f"{option}={path}: {why}; name a text file with a prompt a line, or COCO's captions (.json)") from error
    if not prompts:
        raise UserError(f"{option}={path}: no prompt in it; write one a line")
    return prompts


@cache
def _read(path: Path, changed: int) -> tuple[str, ...]:
    """Read prompts as of the time at which the file ``changed``: captions are parsed once a process, not once a stage."""
    text = read_text(path).replace("\ufeff", "")  # where files were joined, the marks of the later ones lie within
    if path.suffix.lower() == ".json":
        captions = sorted(json.loads(text)["annotations"], key=lambda entry: (entry["image_id"], entry["id"]), reverse=True)
        first = {entry["image_id"]: " ".join(entry["caption"].split()) for entry in captions if entry["caption"].strip()}
        return tuple(first[image] for image in sorted(first))
    return tuple(line.strip() for line in re.split(r"\r\n?|\n", text) if line.strip())


def _batches(texts: Sequence[str]) -> list[Sequence[str]]:
    return [texts[start : start + BATCH] for start in range(0, len(texts), BATCH)]


def _drawn(texts: Sequence[str], example: Condition) -> Condition:
    """Normal numbers in the shapes of ``example``, the same for a text whatever the others; all tokens count."""

    def rows(part: Tensor) -> Tensor:
        if part.dtype == torch.bool:
            return torch.ones(len(texts), *part.shape[1:], dtype=torch.bool)
        return torch.stack([torch.randn(part.shape[1:], generator=_seeded(text)) for text in texts])

    drawn: Condition = pytree.tree_map(rows, example)
    return drawn


def _seeded(text: str) -> torch.Generator:
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big"))
