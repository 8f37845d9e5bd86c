"""How well each image shows its prompt: CLIP score."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file

from qdexp import files
from qdexp.config import WITHOUT_EFFECT, Config
from qdexp.entries import digest
from qdexp.errors import UserError
from qdexp.metrics.clip import ClipScore
from qdexp.models.text import Files, clip_files, load, load_network
from qdexp.models.weights import WeightFiles
from qdexp.sampling.shards import read_shards
from qdexp.stages.base import Results, Stage
from qdexp.stages.conditions import conditioning_of
from qdexp.stages.keys import short_hash
from qdexp.stages.samples import SamplesStage

FILE = "alignment.safetensors"


@dataclass(frozen=True, eq=False, kw_only=True)
class AlignmentStage(Stage):
    """``alignment.safetensors``: ``clip`` float32 [n], in the order of the samples."""

    name = "alignment"
    quick = True

    samples: SamplesStage
    prompts: Sequence[str]
    files: Mapping[str, Path]
    library: str
    option: str = field(metadata=WITHOUT_EFFECT)
    """How the user named the CLIP model, for messages."""

    @classmethod
    def of(cls, config: Config, samples: SamplesStage) -> "AlignmentStage":
        stream = samples.stream
        return cls(
            device=samples.device,
            samples=samples,
            prompts=list(conditioning_of(config.model).wanted(config, stream.name, stream.n)),
            files=_files(config),
            library=version("transformers"),
            option=_option(config),
        )

    def compute(self, folder: Path, inputs: dict[str, Path]) -> None:
        score = _load(self.option, self.files, self.device)
        stream, prompts = self.samples.stream, self.prompts
        found: list[torch.Tensor] = []
        for shard, images in enumerate(read_shards(inputs["samples"], "images")):
            samples = stream.samples(shard)[: len(images)]
            found.append(score.scores(images, [prompts[sample % len(prompts)] for sample in samples]))
        files.write_tensors(folder / FILE, {"clip": torch.cat(found)})

    def results(self, folder: Path) -> Results:
        return {"metrics": {"clip": load_file(folder / FILE)["clip"].double().mean().item()}}


def check(config: Config) -> None:
    """UserError unless the CLIP model is there, whole, and takes such images."""
    if config.protocol.clip is not None:
        found = _files(config)
        WeightFiles((path for role, path in found.items() if role.startswith("weights")), _option(config)).check_digests()
        _load(_option(config), found, torch.device("cpu"))


def protocol_of(config: Config) -> dict[str, Any]:
    """The CLIP model as a part of the protocol; nothing where images are not scored with one."""
    if config.protocol.clip is None:
        return {}
    digests = {role: digest(path) for role, path in _files(config).items()}
    return {"clip_digest": short_hash(digests), "transformers": version("transformers")}


def _files(config: Config) -> Files:
    try:
        return clip_files(str(config.protocol.clip))
    except FileNotFoundError as error:
        raise UserError(f"{_option(config)}: {error}; name a folder or a hub name of a CLIP model, such as "
                        f"openai/clip-vit-base-patch16, or leave it null") from error  # fmt: skip


def _load(option: str, found: Mapping[str, Path], device: torch.device) -> ClipScore:
    folder = found["config.json"].parent
    model = load_network(transformers.CLIPModel, folder, option)
    tokenizer = load(transformers.CLIPTokenizer, folder, option)
    return ClipScore(model, tokenizer, load(transformers.CLIPImageProcessor, folder, option), device)


def _option(config: Config) -> str:
    return f"protocol.clip={config.protocol.clip}"
