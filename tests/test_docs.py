"""The pages of the documentation: their links lead somewhere, their examples run as they are shown."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Any

import generated_pages
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from omegaconf import OmegaConf
from processes import Python, script

import qdexp
from qdexp import methods, overrides
from qdexp.cell import Cell
from qdexp.config import Config
from qdexp.quant.percentile import Percentile
from qdexp.quant.ranges import MinMax, NormSearch
from qdexp.record import flat
from qdexp.shape import Shape

TOP = Path(__file__).parents[1]
DOCS = TOP / "docs"
PAGES = sorted({*DOCS.glob("*.md"), *DOCS.glob("methods/*.md"), *DOCS.glob("notebooks/*.md")} - {DOCS / "index.md"})
MARKDOWN = [TOP / "README.md", *PAGES, *(TOP / "src").rglob("*.md")]
METHODS = sorted(DOCS.glob("methods/*.md"))
RANGES = {"min_max": MinMax, "norm_search": NormSearch, "percentile": Percentile}
EXTENDING = (DOCS / "extending.md").read_text()

LOAD = """
import sys, qdexp
from qdexp.errors import UserError
try:
    qdexp.load(sys.argv[1])
except UserError as error:
    assert "mine.TinyNet" in str(error) and "mine" not in sys.modules
print(type(qdexp.load(sys.argv[1], trust=["mine.TinyNet"])).__name__)
"""


def prose(page: Path) -> str:
    """A page without its blocks of code, and what stands before a notebook's first line."""
    return re.sub(r"\A---\n.*?^---\n+|^```.*?^```|^ {4}.*?$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def targets(page: Path) -> list[str]:
    """Where the links and pictures of a page lead to, but for those to other sites."""
    return [one for one in re.findall(r"\]\(([^)\s]+)\)", prose(page)) if not re.match(r"\w+:", one)]


def anchors(page: Path) -> set[str]:
    """Those of the headings, as GitHub makes them: lower case, hyphens for spaces, without other signs."""
    headings = re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", MARKDOWN, ids=lambda page: page.relative_to(TOP).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    for target in targets(page):
        path, _, anchor = target.partition("#")
        other = page.parent / path if path else page
        assert other.exists(), target
        assert not anchor or anchor in anchors(other), target


def test_the_contents_list_every_page_once() -> None:
    """Pages in a folder of their own are listed by the page above them, which links them."""
    listed = re.findall(r"^([a-z][\w/-]*)$", (DOCS / "index.md").read_text(), flags=re.MULTILINE)
    above = [
        to for page in ("methods", "notebooks") for to in dict.fromkeys(targets(DOCS / f"{page}.md")) if to.startswith(page)
    ]
    found = [f"{name}.md" for name in listed if not name.startswith("generated/")] + [to.partition("#")[0] for to in above]
    pages = [page.relative_to(DOCS).as_posix() for page in [*PAGES, *DOCS.glob("notebooks/*.ipynb")]]
    assert sorted(dict.fromkeys(found)) == sorted(pages)
    assert len(set(listed)) == len(listed)


QUESTION = r"# [^\n]+\n\n[A-Z][^\n?]*\?\n\n"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_a_page_begins_with_its_title_and_the_question_that_it_answers(page: Path) -> None:
    assert re.match(QUESTION, prose(page))


COMMANDS = {
    line: page
    for page in PAGES
    for line in re.findall(r"^ {4}python -m qdexp (.*)$", re.sub(r" *\\\n *", " ", page.read_text()), flags=re.MULTILINE)
    if not re.search(r"\b[A-Z]{4,}\b|\.\.\.|mine", line)
}
"""The commands that stand alone and leave nothing to the reader, which a test can read; other tests run those of examples."""


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: f"{COMMANDS[command].stem}: {command}")
def test_commands_name_options_and_choices_that_exist(command: str) -> None:
    overrides.check(shlex.split(command, comments=True))


def test_many_commands_are_read() -> None:
    assert len(COMMANDS) > 30


def composed(method: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The config of a method, with interpolations resolved and as they are."""
    with initialize_config_dir(str(TOP / "conf"), version_base="1.3"):
        config = compose("config", [f"method={method}"])
    plain: Any = OmegaConf.to_container(config, resolve=True)
    raw: Any = OmegaConf.to_container(config, resolve=False)
    return plain, raw


def options_of(slot: str, step: dict[str, Any], raw: dict[str, Any]) -> dict[str, Any]:
    """What a step can be given, by the name under which the page of its method has it, with the default."""
    found: dict[str, Any] = {}
    defaults: dict[str, Any] = {one.name: one.default for one in fields(get_object(step["_target_"]))}
    for name, value in (defaults | {name: value for name, value in step.items() if name != "_target_"}).items():
        if name == "range":
            words = {f"{kind.__module__}.{kind.__qualname__}": word for word, kind in RANGES.items()}
            found[f"quantizer.steps.{slot}.range"] = words[value["_target_"]]
            found |= {f"quantizer.steps.{slot}.range.{key}": one for key, one in value.items() if key != "_target_"}
        else:
            shared = re.fullmatch(r"\$\{(.+)\}", str(raw.get(name)))
            found[shared[1] if shared else f"quantizer.steps.{slot}.{name}"] = value
    return found


@pytest.mark.parametrize("page", METHODS, ids=lambda page: page.stem)
def test_the_page_of_a_method_lists_its_options_with_their_defaults(page: Path) -> None:
    """Each that it lists is as the config has it; of a step it lists all or none."""
    plain, raw = composed(page.stem)
    rows = dict(re.findall(r"^\| `([a-z_.]+)` \| (?:`([^`]*)` )?\|", prose(page), flags=re.MULTILINE))
    known = {"calib": plain["calib"]["name"]}
    for name in ("calib", "recon", "trajectory", "quant"):
        known |= flat(plain[name], prefix=f"{name}.")
    for slot, step in plain["quantizer"]["steps"].items():
        if step is not None:
            mine = options_of(slot, step, raw["quantizer"]["steps"][slot])
            known |= mine
            if any(name.startswith(f"quantizer.steps.{slot}.") for name in rows):
                assert mine.keys() - rows.keys() == set(), slot
    assert {name: yaml_of(known[name]) for name in rows} == rows


def test_the_page_of_formats_has_the_defaults() -> None:
    quant = flat(composed("fp")[0]["quant"], prefix="quant.")
    rows = re.findall(r"^\| (`quant\.[^|]*) \|[^|]*\| ([^|]*) \|[^|]*\|$", prose(DOCS / "formats.md"), flags=re.MULTILINE)
    told = {name: default.strip("`") for names, default in rows for name in re.findall(r"`([^`]+)`", names)}
    assert told == {name: yaml_of(value) for name, value in quant.items()}


def yaml_of(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@pytest.mark.parametrize("page", METHODS, ids=lambda page: page.stem)
def test_what_the_page_of_a_method_calls_measured_is_quoted(page: Path) -> None:
    """From the results, or from the README, where the command stands beside it."""
    sources = (DOCS / "results.md").read_text() + (TOP / "README.md").read_text()
    quoted = re.findall(r"^\|.*\|$", page.read_text().partition("## Measured")[2], flags=re.MULTILINE)
    assert quoted or page.stem == "released"
    assert [row for row in quoted if row not in sources] == []


def test_the_example_of_paired_intervals(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (DOCS / "statistics.md").read_text(), flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(block, names)
    alone, paired = names["one"].interval(), (names["other"] - names["one"]).interval()
    assert paired.half < alone.half / 3 and paired.low > 0
    assert capsys.readouterr().out.count("Interval(") == 4


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    """With every page in its contents, every option of the schema and every choice of an axis; its notebooks are executed.

    Takes a minute and a half of CPU time, most of it in the notebooks.
    """
    site = tmp_path / "site"
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--quiet", str(DOCS), str(site)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    generated = (f"generated/{name}.html" for name in ("options", "choices", "record"))
    index, options, choices, record = ((site / page).read_text() for page in ("index.html", *generated))
    assert all(f'href="{page.relative_to(DOCS).with_suffix(".html").as_posix()}"' in index for page in PAGES)
    assert all(f">{option}<" in options for option in ("quant.first_act_bits", "recon.weights.beta", "protocol.n", "seed"))
    assert all(f">{path.stem}<" in choices for path in (TOP / "conf").glob("*/*.yaml"))
    assert all(f">{one.name}<" in record for one in fields(Shape))
    assert "timestep_aware" in (site / "notebooks/first_sweep.html").read_text()
    assert "<math " in (site / "methods/gptq.html").read_text()


@pytest.mark.parametrize("kind", [Config, Shape, *(getattr(methods, name) for name in methods.__all__ if name != "Work")])
def test_options_and_fields_say_what_they_mean(kind: type) -> None:
    """The docs show what the docstrings say, one meaning for each."""
    told = dict(generated_pages.meanings(kind))
    assert [name for name, meaning in told.items() if not meaning] == []


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp_path = tmp_path_factory.mktemp("checkout")
    files = re.findall(r"`(mine/\S+)`\n\n```\w+\n(.*?)```", EXTENDING, flags=re.DOTALL)
    for name, content in files:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return tmp_path


SMALL = "protocol.n=16 sampling.batch=8 protocol.heldout=8 protocol.steps=4 trajectory.samples=80 tracker=none"


def run(checkout: Path, text: str) -> None:
    """The commands of a block, each with small numbers."""
    script(re.sub(r"(python -m qdexp.*)", rf"\1 {SMALL}", text.replace("\\\n", " ")), checkout)


SCRIPTS = re.findall(r"```bash\n(.*?)```", EXTENDING, flags=re.DOTALL)


def test_the_examples_are_short() -> None:
    blocks = re.findall(r"`mine/\S+\.py`\n\n```python\n(.*?)```", EXTENDING, flags=re.DOTALL)
    assert len(blocks) == 5
    assert all(block.count("\n") <= 60 for block in blocks)


def test_the_example_of_own_model_estimator_and_strategy(checkout: Path) -> None:
    run(checkout, SCRIPTS[0])
    (record,) = (checkout / "outputs" / "records").glob("mine-deviations-ends-w4a8-*.json")
    assert '"status": "complete"' in record.read_text()
    (saved,) = (checkout / "outputs" / "store").glob("act-*/checkpoint")
    (checkout / "load.py").write_text(LOAD)
    done = Python(["load.py", str(saved)], checkout, {**os.environ, "PYTHONPATH": "mine"}).wait()
    assert (done.returncode, done.stdout) == (0, "TinyNet\n"), done.stderr


def test_the_example_of_a_network_of_a_new_kind(checkout: Path) -> None:
    """Quantized wholly, but for what the docs name, and learned block by block."""
    run(checkout, SCRIPTS[1].replace("python -m qdexp", "python -m qdexp calib.timesteps=4"))
    (path,) = (checkout / "outputs" / "records").glob("transformer-reconstruction-w4a8-*.json")
    record = json.loads(path.read_text())
    assert record["status"] == "complete" and record["coverage"]["quantized"] == {"macs": 1.0, "parameters": 1.0}
    assert {one["kind"] for one in record["coverage"]["left_out"]} == {
        "parameters outside layers",
        "biases",
        "Embedding",
        "LayerNorm",
    }
    assert record["reconstruction"]["weights"]["block"] == ["patches", "time", "blocks.0", "blocks.1", "last"]


def test_the_example_of_a_step_of_ones_own(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a sweep, shared step by step, with what it changes in the checkpoint; it stands in table and page."""
    run(
        checkout,
        SCRIPTS[2].replace(
            "calib=uniform", "calib=uniform model=mine calib.rows=8 calib.timesteps=4 quantizer.steps.act.rows=16"
        ),
    )
    records = [json.loads(path.read_text()) for path in (checkout / "outputs" / "records").glob("mine-*-uniform-w3a8-*.json")]
    found = {(one["axes"]["quantizer"], one["config"]["quantizer"]["steps"].get("bias_correction", {}).get("strength")): one
             for one in records}  # fmt: skip
    assert found.keys() == {("linear", None), ("bias_corrected", None), ("bias_corrected", 0.5)}  # 1 is what it is anyway
    assert len({one["keys"]["weights"] for one in records}) == 1
    monkeypatch.syspath_prepend(checkout / "mine")
    folders = [
        checkout / "outputs" / found[key]["artifacts"]["checkpoint"]
        for key in (("linear", None), ("bias_corrected", 0.5), ("bias_corrected", None))
    ]
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    biases = [qdexp.load(folder, trust=["mine.TinyNet"]).get_parameter("last.bias") for folder in folders]
    del sys.modules["mine"]  # other tests have another
    torch.testing.assert_close(biases[1] - biases[0], (biases[2] - biases[0]) / 2)
    assert (biases[2] - biases[0]).abs().max() > 0
    tables = [path.read_text() for path in (checkout / "outputs" / "sweeps").glob("*/table.md")]
    assert any("bias_corrected-uniform" in table for table in tables)


def test_the_example_of_a_backend_of_ones_own(checkout: Path) -> None:
    """In a sweep beside simulated arithmetic: one network, drawn by both, told apart in the table."""
    options = "model=mine method=timestep_aware quant=w8a8 calib.timesteps=4 calib.rows=8 out=backends sweep=own"
    run(checkout, "python mine/mine.py\n" + SCRIPTS[4].replace("integer\n", f"integer {options}\n"))
    records = [json.loads(path.read_text()) for path in (checkout / "backends" / "records").glob("*.json")]
    simulated, integer = sorted(records, key=lambda record: str(record["axes"]["backend"]), reverse=True)
    assert [one["axes"]["backend"] for one in (simulated, integer)] == ["simulated", "integer"]
    same = {role for role, key in simulated["keys"].items() if integer["keys"][role] == key}
    assert same >= {"weights", "act", "coverage"}
    assert not same & {"samples", "curves", "layers", "fid"}
    assert integer["metrics"] == simulated["metrics"]  # it takes no layer of so small a model
    table = (checkout / "backends" / "sweeps" / "own" / "table.md").read_text()
    assert all(f"timestep_aware backend={name}" in table for name in ("simulated", "integer"))


def test_the_backend_of_the_example_computes_what_the_simulated_arithmetic_does(
    checkout: Path, finished: Callable[..., Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(checkout / "mine")
    monkeypatch.delitem(sys.modules, "integer", raising=False)
    backend = import_module("integer").Integer(least=2)
    folder = next((finished().out / "store").glob("act-*/checkpoint"))
    networks = [qdexp.load(folder, backend=one) for one in ("simulated", backend)]
    kinds = [type(module).__name__ for module in networks[1].modules()]
    assert kinds.count("IntegerLinear") > 5
    x_t, t = torch.randn(4, 1, 28, 28), torch.tensor([3, 700, 20, 999])
    with torch.inference_mode():
        expected, found = (network(x_t, t).sample for network in networks)
        assert (found - expected).norm() < 0.02 * expected.norm()
        layers = [network.get_submodule("time_embedding.linear_1") for network in networks]
        x = torch.randn(4, 8)[:, :, None].expand(4, 8, 3).transpose(1, 2)  # not contiguous
        torch.testing.assert_close(layers[1](x), layers[0](x))


def test_the_example_of_a_metric_of_ones_own(checkout: Path) -> None:
    """Measured of finished cells, whose images are not sampled again; it stands in table, record and page."""
    first, later = re.split(r"\n(?=python -m qdexp .*'metric)", SCRIPTS[3])
    out = "out=measured calib.rows=8"
    run(checkout, first.replace("method=fp,ptq", f"method=fp,ptq {out}"))
    executions = checkout / "measured" / "executions.jsonl"
    made = executions.read_text().splitlines()
    run(checkout, f"export PYTHONPATH=mine\n{later}".replace("method=fp,ptq", f"method=fp,ptq {out}"))
    added = [json.loads(line)["entry"].rpartition("-")[0] for line in executions.read_text().splitlines()[len(made) :]]
    assert added == ["sharpness", "sharpness"]
    records = [json.loads(path.read_text()) for path in (checkout / "measured" / "records").glob("*.json")]
    assert [{"sharpness", "sharpness_lost"} & one["metrics"].keys() == {"sharpness"} for one in records].count(True) == 1
    assert all(one["config"]["metric"]["sharpness"]["scale"] == 10 for one in records)
    (newest,) = [path for path in (checkout / "measured" / "sweeps").glob("*/table.md") if " sharpness " in path.read_text()]
    assert " sharpness - fp " in newest.read_text() or " FID - fp " in newest.read_text()
