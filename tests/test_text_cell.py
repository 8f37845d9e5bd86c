"""Models with prompts through whole cells: from a folder of weights and encoders and a file of prompts to the record."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pipelines import NETWORKS, PROMPTS, WIDTH, save_clip_model, save_model
from safetensors.torch import load_file
from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

from qdexp.cell import Cell
from qdexp.errors import UserError
from qdexp.files import sha256
from qdexp.models.prompts import StableDiffusionPrompts
from qdexp.protocol import protocol_of
from qdexp.report.comparison import compare
from qdexp.report.evidence import Evidence
from qdexp.report.tables import to_markdown
from qdexp.sampling.conditions import PIECE
from qdexp.sampling.shards import read_shards
from qdexp.stages.calibration import read_rows
from qdexp.stages.conditions import read_conditions
from qdexp.store import Store
from qdexp.sweep.plan import disk_bytes, plan

CellOf = Callable[..., Cell]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All tiny text models, a CLIP model, and prompts for them."""
    folder = tmp_path_factory.mktemp("text")
    for name in NETWORKS:
        save_model(name, folder / "conf", folder / name)
    save_clip_model(folder / "clip")
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    return folder


@pytest.fixture
def text_of(cell_of: CellOf, saved: Path) -> CellOf:
    """``text_of(model, *arguments)``: a guided cell of it, 12 images."""

    def cell(model: str, *arguments: str) -> Cell:
        given = {argument.partition("=")[0] for argument in arguments}
        usual = [f"protocol.prompts={saved / 'prompts.txt'}", "protocol.guidance=2"]
        usual += ["sampler=plms", "protocol.n=12", "protocol.steps=2", "trajectory.samples=8"]
        kept = [option for option in usual if option.partition("=")[0] not in given]
        return cell_of(f"hydra.searchpath=[file://{saved / 'conf'}]", f"model={model}", *kept, *arguments)

    return cell


@pytest.mark.parametrize(
    ("model", "method"), [("tiny_sd", "qdiffusion"), ("tiny_sdxl", "timestep_aware"), ("tiny_pixart", "reconstruction")]
)
def test_from_prompts_to_record(text_of: CellOf, saved: Path, model: str, method: str) -> None:
    cell = text_of(model, f"method={method}", *(["inspection.rows=4"] if model == "tiny_sd" else []))
    record = cell.run()
    assert record["status"] == "complete"
    assert record["axes"]["weights"] == "file"
    assert all(error > 0 for error in record["curves"]["teacher_forced"])
    assert record["metrics"]["distance"] > 0
    assert "classes" not in record["protocol"]
    assert len(record["protocol"]["prompts"]) == 64
    store = Store(cell.out)
    images = next(read_shards(store.folder(cell.stages["samples"].entry), "images"))
    assert images.shape[1:] == (1, 28, 28)  # decoded where the model draws latents
    x_t, _, rows = read_rows(store.folder(cell.stages["calibration"].entry))
    assert len(x_t) == 2 * 2 * 4  # timesteps x rows x (as asked, empty)
    assert (x_t[::2] == x_t[1::2]).all()
    conditions = load_file(store.folder(cell.stages["calibration_conditions"].entry) / "asked-00000.safetensors")
    table, text = conditions["encoder_hidden_states"], rows["encoder_hidden_states"]
    assert len(table) == len(PROMPTS)
    for row in text[::2]:
        assert any(torch.equal(row, entry) for entry in table)
    assert all(torch.equal(row, text[1]) for row in text[1::2])
    assert len(set(map(str, text[::2]))) > 1


def test_images_show_their_prompts_in_turn_and_calibration_the_last_ones(text_of: CellOf, tmp_path: Path) -> None:
    many = [f"{'a' * number} cat" for number in range(1, PIECE + 9)]
    (tmp_path / "many.txt").write_text("\n".join(many))
    cell = text_of("tiny_sd", f"protocol.prompts={tmp_path / 'many.txt'}", f"protocol.n={PIECE + 4}")
    roles = [name for name in cell.stages if "conditions" in name]
    assert roles == ["conditions", "calibration_conditions", "heldout_conditions"]
    jobs = [node.stage for node in plan([cell], Store(cell.out), parts=2) if node.kind == "conditions"]
    assert sorted(jobs) == sorted(roles)
    assert disk_bytes(cell.config, cell.stages["conditions"]) == 4 * (PIECE + 4) * 77 * WIDTH
    assert disk_bytes(cell.config, cell.stages["calibration"]) == 4 * 2 * 8 * (14 * 14 + 77 * WIDTH)
    inputs = {"conditions": cell.stages["conditions"].make(Store(cell.out)).folder}
    conditions = read_conditions(inputs, cell.config.protocol.guidance)
    assert conditions.count == PIECE + 4
    encoder = StableDiffusionPrompts(cell.config.model.weights)
    expected = encoder.encode([many[PIECE + 1], many[0], many[2]], cell.config.model, torch.device("cpu"))
    found = conditions.of([PIECE + 1, PIECE + 4, 2], torch.device("cpu")).branches[0]  # the last prompts are not needed
    assert torch.equal(found["encoder_hidden_states"], expected["encoder_hidden_states"])  # type: ignore[arg-type]
    inputs = {"conditions": cell.stages["calibration_conditions"].make(Store(cell.out)).folder}
    learned = read_conditions(inputs, cell.config.protocol.guidance).of([0], torch.device("cpu")).branches[0]
    last = encoder.encode(many[-1:], cell.config.model, torch.device("cpu"))
    assert torch.equal(learned["encoder_hidden_states"], last["encoder_hidden_states"])  # type: ignore[arg-type]


def test_encoding_that_was_killed_goes_on(text_of: CellOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "many.txt").write_text("\n".join(f"{'a' * number}" for number in range(1, 3 * PIECE)))
    options = (f"protocol.prompts={tmp_path / 'many.txt'}", f"protocol.n={2 * PIECE + 1}")
    cell, calls = text_of("tiny_sd", *options), list[int]()
    stage = cell.stages["conditions"]
    encode = StableDiffusionPrompts.encode

    def counted(self: StableDiffusionPrompts, wanted: list[str], *rest: object) -> object:
        if len(calls) == 2:
            calls.append(0)
            raise KeyboardInterrupt
        calls.append(len(wanted))
        return encode(self, wanted, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(StableDiffusionPrompts, "encode", counted)
    store = Store(cell.out)
    with pytest.raises(KeyboardInterrupt):
        stage.make(store)
    assert not store.has(stage.entry)
    stage.make(store)
    assert calls == [PIECE, PIECE, 0, 1, 1]  # the rest, and the empty prompt


CONDITIONS = {"conditions", "calibration_conditions"}
MEASURED = {"samples", "full_precision", "features_fashion-cnn", "fid", "kid", "isc", "precision_recall", "distance", "ssim"}
LEARNED = {"trajectory", "calibration", "act", "coverage", "curves", "noise_error", "sizes", "quantized"} | MEASURED
LEARNED -= {"full_precision"}


def changed(one: Cell, other: Cell) -> set[str]:
    assert one.stages.keys() == other.stages.keys()
    return {name for name in one.stages if one.stages[name].key != other.stages[name].key}


def test_prompts_count_by_content_and_only_where_they_are_read(text_of: CellOf, saved: Path, tmp_path: Path) -> None:
    base = text_of("tiny_sd")
    moved, other = tmp_path / "moved.txt", tmp_path / "other.txt"
    moved.write_text("\n\n".join(PROMPTS) + "\n")
    other.write_text("\n".join([*PROMPTS[:4], "a dog"]))
    for change, stages, same in (
        (f"protocol.prompts={moved}", set(), True),
        (f"protocol.prompts={other}", CONDITIONS | MEASURED | LEARNED | {"heldout", "noise_error"}, False),
        (f"trajectory.prompts={other}", {"calibration_conditions"} | LEARNED, True),
        ("protocol.guidance=3", MEASURED | LEARNED | {"heldout", "noise_error"}, False),
    ):
        cell = text_of("tiny_sd", change)
        assert changed(base, cell) == stages, change
        assert (protocol_of(cell.config)["hash"] == protocol_of(base.config)["hash"]) is same, change


def test_encoders_count_by_content(text_of: CellOf, saved: Path, tmp_path: Path) -> None:
    base = text_of("tiny_sd")
    shutil.copytree(saved / "tiny_sd", tmp_path / "copy")
    assert changed(base, text_of("tiny_sd", f"model.weights={tmp_path / 'copy'}")) == set()
    (tmp_path / "copy" / "tokenizer" / "merges.txt").write_text("#version: 0.2\nc a\n")
    assert changed(base, text_of("tiny_sd", f"model.weights={tmp_path / 'copy'}")) >= CONDITIONS


def test_what_is_asked_of_the_wrong_model_is_told_before_any_work(text_of: CellOf, saved: Path, tmp_path: Path) -> None:
    file = f"protocol.prompts={saved / 'prompts.txt'}"
    for model, option, message in (
        ("tiny_sd", "protocol.prompts=null", r"protocol\.prompts=null: tiny_sd draws what prompts ask for; name a text file"),
        ("tiny_sd", "protocol.classes=[1]", r"protocol\.classes=\[1\]: tiny_sd is conditioned on prompts; leave it out"),
        ("tiny_sd", f"trajectory.prompts={tmp_path / 'none'}", r"trajectory\.prompts=.*none: No such file"),
        (
            "tiny_sd",
            "model.condition._target_=torch.nn.Identity",
            r"model\.condition=.*: name a subclass of qdexp\.models\.con",
        ),
        ("tiny_sd", "model.condition._target_=qdexp.none", r"model\.condition: Error (locating|loading) .*none"),
        ("tiny_sd", "sampler=dpm_solver", r"protocol\.scheduler=.*tiny_sd samples latents.*scheduler\.thresholding=false"),
        ("tiny_sd", f"protocol.clip={tmp_path}", r"protocol\.clip=.*: no model\.safetensors or \.bin in this folder; name a"),
        ("tiny_sd", f"protocol.clip={saved / 'tiny_sd' / 'text_encoder'}", r"protocol\.clip=.*: no preprocessor_config\.json"),
        ("ddpm_fashion", "protocol.guidance=1", r"protocol\.prompts=.*: ddpm_fashion is unconditional; leave it out"),
        ("dit_fashion", "protocol.guidance=1", r"protocol\.prompts=.*: dit_fashion is conditioned on classes; leave it out"),
    ):
        with pytest.raises(UserError, match=f"^{message}"):
            text_of(model, *([option] if option.startswith("protocol.prompts") else [file, option]))
    with pytest.raises(UserError, match=r"^protocol\.clip=.*: ddpm_fashion is unconditional; leave it out"):
        text_of("ddpm_fashion", "protocol.prompts=null", "protocol.guidance=1", f"protocol.clip={saved / 'clip'}")


def test_a_rehearsal_needs_no_encoder_and_says_what_it_is(text_of: CellOf) -> None:
    cell = text_of("tiny_sdxl", "model.weights=random", "method=fp")
    record = cell.run()
    assert record["axes"]["weights"] == "random"
    assert "weights: random, a rehearsal" in to_markdown(compare([record], Evidence(cell.out)))
    half = text_of("tiny_sd", "model.condition.weights=random", "method=fp")
    assert half.run()["axes"]["weights"] == "random", "nor does a number mean anything where only embeddings are drawn"


def test_what_a_rehearsal_draws_has_the_networks_shapes(text_of: CellOf) -> None:
    cell = text_of("tiny_sdxl", "model.weights=random", "method=fp")
    wider = ["model.network.cross_attention_dim=6", "model.network.projection_class_embeddings_input_dim=32"]
    for other in (
        text_of("tiny_sdxl", "method=fp"),
        *(text_of("tiny_sdxl", "model.weights=random", "method=fp", w) for w in wider),
    ):
        assert other.stages["conditions"].key != cell.stages["conditions"].key


def test_images_are_scored_by_how_well_they_show_their_prompts(text_of: CellOf, saved: Path) -> None:
    option = f"protocol.clip={saved / 'clip'}"
    plain, cell, full = text_of("tiny_pixart"), text_of("tiny_pixart", option), text_of("tiny_pixart", option, "method=fp")
    assert cell.stages.keys() - plain.stages.keys() == {"clip"}
    assert all(cell.stages[name].key == stage.key for name, stage in plain.stages.items())
    record, store = cell.run(), Store(cell.out)

    model = CLIPModel.from_pretrained(saved / "clip").eval()
    tokenizer, processor = (kind.from_pretrained(saved / "clip") for kind in (CLIPTokenizer, CLIPImageProcessor))
    images = torch.cat(list(read_shards(store.folder(cell.stages["samples"].entry), "images"))).repeat(1, 3, 1, 1)
    expected = []
    with torch.no_grad():
        for number, image in enumerate(images):
            pixels = processor(images=image, return_tensors="pt").pixel_values
            seen = model.get_image_features(pixels).pooler_output[0]
            meant = model.get_text_features(**tokenizer([PROMPTS[number % len(PROMPTS)]], return_tensors="pt")).pooler_output[0]
            expected.append(max(100 * torch.cosine_similarity(seen, meant, dim=0).item(), 0))
    scores = load_file(store.folder(cell.stages["clip"].entry) / "images.safetensors")["clip"]
    assert scores.tolist() == pytest.approx(expected, abs=1e-3)
    assert record["metrics"]["clip"] == pytest.approx(sum(expected) / 12, abs=1e-3)
    assert len(set(expected)) > 1

    protocol = record["protocol"]
    assert protocol["clip_digest"] and protocol["hash"] != protocol_of(plain.config)["hash"]
    records = [full.run(), json.loads(json.dumps(record))]
    assert " CLIP |" in to_markdown(compare(records, Evidence(cell.out)))
    line = compare(records, Evidence(cell.out)).lines[1]
    assert line.numbers["clip"].value == pytest.approx(record["metrics"]["clip"])
    assert line.numbers["clip"].low < line.numbers["clip"].high
    difference = records[1]["metrics"]["clip"] - records[0]["metrics"]["clip"]
    assert line.differences["clip"].value == pytest.approx(difference, abs=1e-6)
    assert sha256(saved / "clip" / "model.safetensors") not in json.dumps(protocol)  # one digest of all its files
