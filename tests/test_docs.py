"""The pages of the documentation: links lead somewhere, options and numbers are right, the site is built without a warning."""

import json
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import generated_pages
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_object
from omegaconf import OmegaConf

from qdexp import methods, overrides
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

    Takes two minutes of CPU time, most of it in the notebooks.
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
