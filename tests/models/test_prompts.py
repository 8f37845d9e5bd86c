"""Prompts and what the text encoders make of them, against diffusers' own pipelines; and what is refused before any work."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import PixArtAlphaPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from pipelines import NETWORKS, PROMPTS, save_clip, save_model
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5EncoderModel,
    T5Tokenizer,
)

from qdexp.config import Config
from qdexp.errors import UserError
from qdexp.models.prompts import Prompts, read
from qdexp.paths import conf_folder

CPU = torch.device("cpu")
Of = Callable[..., tuple[Prompts, Config]]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    for name in NETWORKS:
        save_model(name, folder / "conf", folder / name)
    (folder / "prompts.txt").write_text("\n".join([*PROMPTS, "", "  the last  "]))
    return folder


@pytest.fixture
def prompts_of(saved: Path) -> Of:
    """``prompts_of(model, *arguments)``: how the model is asked, and the config."""

    def of(model: str, *arguments: str) -> tuple[Prompts, Config]:
        options = [f"hydra.searchpath=[file://{saved / 'conf'}]", f"model={model}", *arguments]
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            config = Config.of(compose("config", options))
        protocol = replace(config.protocol, prompts=config.protocol.prompts or str(saved / "prompts.txt"))
        return instantiate(config.model.condition), replace(config, protocol=protocol)

    return of


def pipeline(model: str, folder: Path) -> Any:
    """diffusers' own, of its text encoders alone."""
    nothing = {"vae": None, "scheduler": None}
    if model == "tiny_pixart":
        tokenizer, encoder = (kind.from_pretrained(folder / place) for kind, place in
                              ((T5Tokenizer, "tokenizer"), (T5EncoderModel, "text_encoder")))  # fmt: skip
        return PixArtAlphaPipeline(tokenizer=tokenizer, text_encoder=encoder, transformer=None, **nothing)
    first = {"tokenizer": CLIPTokenizer.from_pretrained(folder / "tokenizer")}
    first["text_encoder"] = CLIPTextModel.from_pretrained(folder / "text_encoder")
    if model == "tiny_sd":
        beside = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        return StableDiffusionPipeline(**first, unet=None, **nothing, **beside)
    second = {"tokenizer_2": CLIPTokenizer.from_pretrained(folder / "tokenizer_2")}
    second["text_encoder_2"] = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder_2")
    return StableDiffusionXLPipeline(**first, **second, unet=None, **nothing)


def test_conditions_are_those_of_diffusers_pipelines(prompts_of: Of, saved: Path) -> None:
    texts = ["a cat on a mat", "Two red birds", "the dog " * 80]
    for model in NETWORKS:
        prompts, config = prompts_of(model)
        asked: Any = prompts.encode(texts, config.model, CPU)
        nothing: Any = prompts.nothing(config.model, CPU)
        options = {"clean_caption": False} if model == "tiny_pixart" else {"num_images_per_prompt": 1, "device": CPU}
        theirs = pipeline(model, saved / model).encode_prompt(texts, do_classifier_free_guidance=True, **options)
        if model == "tiny_sd":
            expected: Any = ({"encoder_hidden_states": theirs[0]}, {"encoder_hidden_states": theirs[1][:1]})
        elif model == "tiny_pixart":
            named = [{"encoder_hidden_states": theirs[n], "encoder_attention_mask": theirs[n + 1].bool()} for n in (0, 2)]
            expected = (named[0], {name: value[:1] for name, value in named[1].items()})
            assert not asked["encoder_attention_mask"][0].all()
        else:
            sizes = torch.tensor([[28.0, 28, 0, 0, 28, 28]])
            added = [
                {"text_embeds": theirs[2], "time_ids": sizes.repeat(3, 1)},
                {"text_embeds": theirs[3][:1], "time_ids": sizes},
            ]
            expected = tuple({"encoder_hidden_states": theirs[n][: 3 - 2 * n], "added_cond_kwargs": added[n]} for n in (0, 1))
            assert not nothing["encoder_hidden_states"].any()
        torch.testing.assert_close((asked, nothing), expected)


def test_a_prompt_is_encoded_to_the_same_bits_in_any_company(prompts_of: Of) -> None:
    prompts, config = prompts_of("tiny_sd")
    alone = prompts.encode(["a cat"], config.model, CPU)["encoder_hidden_states"]
    among = prompts.encode([*PROMPTS * 8, "a cat"], config.model, CPU)["encoder_hidden_states"]
    assert isinstance(alone, torch.Tensor) and isinstance(among, torch.Tensor)
    assert len(among) == 41
    assert torch.equal(alone[0], among[0]) and torch.equal(alone[0], among[40])


@pytest.mark.parametrize("model", NETWORKS)
def test_a_rehearsal_draws_embeddings_of_the_right_shapes(prompts_of: Of, model: str) -> None:
    prompts, config = prompts_of(model, "model.weights=random")
    real, config_of_real = prompts_of(model)
    assert prompts.files(config.model) == {}
    one, other = prompts.encode(["a", "b"], config.model, CPU), prompts.encode(["b"], config.model, CPU)
    assert isinstance(one["encoder_hidden_states"], torch.Tensor) and isinstance(other["encoder_hidden_states"], torch.Tensor)
    assert torch.equal(one["encoder_hidden_states"][1], other["encoder_hidden_states"][0])
    assert not torch.equal(one["encoder_hidden_states"][0], one["encoder_hidden_states"][1])
    shapes = [torch.utils._pytree.tree_map(lambda part: (part.shape, part.dtype), condition)
              for condition in (one, real.encode(["a", "b"], config_of_real.model, CPU))]  # fmt: skip
    assert shapes[0] == shapes[1]


def test_who_is_asked_for_what(prompts_of: Of, tmp_path: Path) -> None:
    prompts, config = prompts_of("tiny_sd")
    lines = [prompt.strip() for prompt in PROMPTS] + ["the last"]
    assert prompts.wanted(config, "evaluation", 3) == lines[:3]
    assert prompts.wanted(config, "evaluation", 100) == lines
    assert prompts.wanted(config, "calibration", 2) == ["the last", lines[-2]]
    (tmp_path / "own.txt").write_text("x\ny\nz")
    config = replace(config, trajectory=replace(config.trajectory, prompts=str(tmp_path / "own.txt")))
    assert prompts.wanted(config, "calibration", 2) == ["x", "y"]
    assert prompts.wanted(config, "evaluation", 2) == lines[:2]


MARKED = ("utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32", "utf-32-be")


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", MARKED)
def test_prompts_in_every_encoding_that_says_so(tmp_path: Path, encoding: str, ends: str) -> None:
    mark = "\ufeff" if encoding.endswith("-be") else ""
    (tmp_path / "prompts.txt").write_bytes(f"{mark}a café{ends}{ends} a dog\u2028sits {ends}".encode(encoding))
    assert read(tmp_path / "prompts.txt", "protocol.prompts") == ["a café", "a dog\u2028sits"]


def test_joined_files_of_prompts_leave_no_mark_within(tmp_path: Path) -> None:
    (tmp_path / "joined.txt").write_bytes(2 * "a cat\n".encode("utf-8-sig"))
    assert read(tmp_path / "joined.txt", "protocol.prompts") == ["a cat", "a cat"]


@pytest.mark.parametrize("encoding", MARKED[:3])
def test_captions_in_every_encoding_that_says_so(tmp_path: Path, encoding: str) -> None:
    entries = [{"image_id": 1, "id": 1, "caption": " "}, {"image_id": 1, "id": 2, "caption": "two cafés"}]
    (tmp_path / "captions.JSON").write_bytes(json.dumps({"annotations": entries}, ensure_ascii=False).encode(encoding))
    assert read(tmp_path / "captions.JSON", "protocol.prompts") == ["two cafés"]


def test_captions_of_coco_are_the_first_of_each_image(tmp_path: Path) -> None:
    captions = [(9, 3, "later"), (4, 2, "two\n lines "), (9, 1, "first of nine"), (4, 5, "another")]
    entries = [{"image_id": image, "id": number, "caption": text} for image, number, text in captions]
    (tmp_path / "captions.json").write_text(json.dumps({"annotations": entries}))
    assert read(tmp_path / "captions.json", "protocol.prompts") == ["two lines", "first of nine"]


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("none.txt", None, "No such file"),
        ("empty.txt", b"\n  \n", "no prompt in it"),
        ("image.txt", b"\x89PNG\xff", "neither lines of UTF-8 text nor COCO's captions"),
        ("unmarked.txt", "a cat".encode("utf-16-le"), "neither lines of UTF-8 text nor COCO's captions"),
        ("latin.txt", "a café".encode("latin-1"), "neither lines of UTF-8 text nor COCO's captions"),
        ("instances.json", b'{"annotations": [{"image_id": 1, "id": 2}]}', "neither lines of UTF-8 text nor"),
        ("list.json", b'["a cat"]', "neither lines of UTF-8 text nor"),
    ],
)
def test_a_file_without_prompts_is_refused(tmp_path: Path, name: str, content: bytes | None, why: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"^protocol\.prompts=.*{name}: {why}"):
        read(tmp_path / name, "protocol.prompts")


def lacking(*names: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def wrong_width(folder: Path) -> None:
    save_clip(folder, CLIPTextModel, width=16)


def wrong_kind(folder: Path) -> None:
    save_clip(folder, CLIPTextModelWithProjection)


def torn(folder: Path) -> None:
    file = folder / "text_encoder" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:500])


def torn_config(folder: Path) -> None:
    (folder / "text_encoder" / "config.json").write_text('{"architectures": [')


def code(folder: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.system, ("touch /tmp/never",)

    lacking("text_encoder/model.safetensors")(folder)
    torch.save({"x": Evil()}, folder / "text_encoder" / "pytorch_model.bin")


def configured(part: str | None = None, **more: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "text_encoder" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | (more if part is None else {part: more})))

    return change


def larger_vocabulary(folder: Path) -> None:
    path = folder / "tokenizer" / "vocab.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dog</w>": 56}))


def saying(file: str, **values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | values))

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (saying("text_encoder/config.json", use_attention_mask=True), r"text_encoder/config\.json says use_attention_mask="),
        (saying("tokenizer/tokenizer_config.json", model_max_length=64), "tokenizer says model_max_length=64, prompts have 77"),
        (lacking("tokenizer/vocab.json"), r"no tokenizer/vocab\.json in this folder; name a diffusers folder with text enc"),
        (lacking("tokenizer/merges.txt"), r"no tokenizer/merges\.txt in this folder"),
        (lacking("tokenizer/tokenizer_config.json"), r"no tokenizer/tokenizer_config\.json in this folder"),
        (lacking("text_encoder/model.safetensors"), r"no text_encoder/model\.safetensors or \.bin in this folder"),
        (lacking("text_encoder/config.json"), r"no text_encoder/config\.json in this folder"),
        (wrong_width, r"encoder_hidden_states of width 16, model\.network takes 12; name the folder of the model's own"),
        (wrong_kind, r"text_encoder is \['CLIPTextModelWithProjection'\], not CLIPTextModel; "),
        (torn, "not a whole safetensors file"),
        (torn_config, r"text_encoder cannot be loaded \("),
        (code, r"it names (posix|nt|os)\.system, which could run code"),
        (
            configured(attn_implementation="someone/kernel"),
            r"attn_implementation=someone/kernel in its config\.json is foreign",
        ),
        (
            configured(_attn_implementation="flash_attention_2"),
            r"_attn_implementation=flash_attention_2 in its config\.json is",
        ),
        (configured("text_config", _attn_implementation="someone/kernel"), r"foreign code"),
        (configured(quantization_config={"quant_method": "gptq"}), r"quantization_config in its config\.json asks for other"),
        (larger_vocabulary, "tokenizer knows 57 tokens, text_encoder takes 56"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_encoders_that_cannot_be_used_are_told_before_any_work(
    prompts_of: Of, saved: Path, tmp_path: Path, change: Callable[[Path], None], message: str
) -> None:
    shutil.copytree(saved / "tiny_sd", tmp_path / "model")
    change(tmp_path / "model")
    prompts, config = prompts_of("tiny_sd", f"model.weights={tmp_path / 'model'}")
    with pytest.raises(UserError, match=rf"^model\.condition\.weights=.*model: .*{message}"):
        prompts.check(config)


def test_a_pipeline_that_asks_for_nothing_in_another_way_is_refused(prompts_of: Of, saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved / "tiny_sdxl", tmp_path / "model")
    for file, value in (("model_index.json", True), ("model_index.json", False)):
        saying(file, force_zeros_for_empty_prompt=value)(tmp_path / "model")
        prompts, config = prompts_of("tiny_sdxl", f"model.weights={tmp_path / 'model'}")
        if value:
            prompts.check(config)
    with pytest.raises(UserError, match=r"model_index\.json says force_zeros_for_empty_prompt=false, model\.condition \(XLPr"):
        prompts.check(config)


def test_a_single_file_has_no_encoders(prompts_of: Of, saved: Path) -> None:
    file = saved / "tiny_sd" / "unet" / "diffusion_pytorch_model.safetensors"
    prompts, config = prompts_of("tiny_sd", f"model.weights={file}")
    with pytest.raises(
        UserError, match=r"^model\.condition\.weights=.*: no text_encoder/.* or \.bin in a single file; name a diff"
    ):
        prompts.check(config)
    prompts, config = prompts_of("tiny_sd", f"model.weights={file}", f"model.condition.weights={saved / 'tiny_sd'}")
    prompts.check(config)


def test_an_encoder_that_lacks_a_weight_is_not_filled_up(prompts_of: Of, saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved / "tiny_sd", tmp_path / "model")
    file = tmp_path / "model" / "text_encoder" / "model.safetensors"
    save_file({name: value for name, value in load_file(file).items() if "final" not in name}, file, {"format": "pt"})
    prompts, config = prompts_of("tiny_sd", f"model.weights={tmp_path / 'model'}")
    with pytest.raises(UserError, match=r"text_encoder lacks final_layer_norm\.bias; fetch or export it again"):
        prompts.encode(["a cat"], config.model, CPU)


def test_an_encoder_of_ever_more_layers_is_stopped(prompts_of: Of, saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved / "tiny_sd", tmp_path / "model")
    configured(num_hidden_layers=10**9)(tmp_path / "model")
    prompts, config = prompts_of("tiny_sd", f"model.weights={tmp_path / 'model'}")
    with pytest.raises(UserError, match=r"text_encoder cannot be loaded \(its config\.json describes more than 20,000 tensors"):
        prompts.encode(["a cat"], config.model, CPU)


def test_names_and_files_of_older_versions_are_understood(prompts_of: Of, saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved / "tiny_sd", tmp_path / "model")
    folder = tmp_path / "model" / "text_encoder"
    state = {f"text_model.{name}": value for name, value in load_file(folder / "model.safetensors").items()}
    torch.save(state | {"text_model.embeddings.position_ids": torch.arange(77)[None]}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    prompts, config = prompts_of("tiny_sd", f"model.weights={tmp_path / 'model'}")
    prompts.check(config)
    newer, _ = prompts_of("tiny_sd")
    old = prompts.encode(PROMPTS, config.model, CPU)
    torch.testing.assert_close(old, newer.encode(PROMPTS, config.model, CPU), rtol=0, atol=0)
