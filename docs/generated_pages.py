"""Pages that are made from the code, and links of the other pages as a site has them."""

import ast
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from importlib.util import find_spec
from inspect import getdoc, isabstract
from itertools import takewhile
from pathlib import Path
from typing import Any, get_args, get_type_hints

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from qdexp import methods, numbers, shape
from qdexp.cli import COMMANDS
from qdexp.config import Config
from qdexp.config.checks import schema_of
from qdexp.methods import Step
from qdexp.quant import percentile, ranges

TOP = Path(__file__).parents[1]
CONF = TOP / "conf"
CARDS = {path.parent.name: path for path in sorted((TOP / "src/qdexp/zoo").glob("*/CARD.md"))}

CHOICES = "One file each in `conf/`. `python -m qdexp --help` lists the names."
OPTIONS = """Generated from the types that a command line is checked by; `python -m qdexp.config` prints them as JSON schema.
Defaults are those of `python -m qdexp` without arguments. How options are set: [Configuration](/configuration.md)."""
STEPS = """Generated from `qdexp.methods` and `qdexp.quant.ranges`. A step is named as `quantizer.steps.SLOT._target_`, and its
options stand beside it: see [Methods](/methods.md)."""
NODE = "mapping with `_target_`"
TYPED = "`qdexp COMMAND ...` and `python -m MODULE ...` are the same; each has `--help`."
FIELDS = """Generated from the types that a record is read by, `qdexp.shape`. Other keys are ignored. What the record is for:
[The record](/record.md)."""
NUMBERS = """The keys in `metrics` that qdexp's own metrics give. Tables show the number times its factor. A metric of your own
adds keys, and describes them in `measures`."""
OPTION = ["option", "values", "default", "meaning"]


def write_all(folder: Path) -> None:
    """Write the generated pages into ``folder``; a page that is there already and would be the same is left alone."""
    pages = {"choices": choices(), "options": options(), "steps": steps(), "commands": commands(), "record": record()}
    pages |= {name: linked(path.read_text(), path) for name, path in CARDS.items()}
    folder.mkdir(exist_ok=True)
    for name, text in pages.items():
        path = folder / f"{name}.md"
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def linked(text: str, page: Path) -> str:
    """A page of the repository as a page of the site: links to what is no page of it become names of files."""

    def target(match: re.Match[str]) -> str:
        label, to = match["label"], match["to"]
        path, _, anchor = to.partition("#")
        if re.match(r"\w+:", to) or not path:
            return match[0]
        file = (page.parent / path).resolve()
        hash_ = f"#{anchor}" if anchor else ""
        if match["picture"]:
            return f"![{label}](/{Path('..', file.relative_to(TOP))})"
        if TOP / "docs" in file.parents:
            return f"[{label}](/{file.relative_to(TOP / 'docs')}{hash_})"
        if file == TOP / "README.md":
            return f"[{label}](/index.md{hash_})"
        if file in CARDS.values():
            return f"[{label}](/generated/{file.parent.name}.md{hash_})"
        return f"{label} (`{file.relative_to(TOP)}`)"

    return re.sub(r"(?P<picture>!?)\[(?P<label>[^\]]*)\]\((?P<to>[^)\s]+)\)", target, text)


def contents(text: str, folder: str) -> str:
    """A hidden table of contents of the pages in a folder of the docs, in the order in which ``text`` links them."""
    names = "\n".join(dict.fromkeys(re.findall(rf"\]\(/({folder}/\w+)\.", text)))
    return f"\n\n```{{toctree}}\n:hidden:\n\n{names}\n```\n"


def attributes(kind: type) -> tuple[str, dict[str, str]]:
    """What the docstring of a class says before its ``Attributes:``, and of each of them; those of its bases too."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        _, _, listed = (base.__dict__.get("__doc__") or "").partition("Attributes:\n")
        for match in re.finditer(r"^ +(\w+): (.+?)(?=^ +\w+: |^\s*\Z)", listed, flags=re.DOTALL | re.MULTILINE):
            found[match[1]] = " ".join(match[2].split())
    return (getdoc(kind) or "").partition("Attributes:")[0], found


def choices() -> str:
    """The choices of each axis, with what their files say of themselves."""
    parts = [_page("Choices", "What can each axis be?", CHOICES)]
    for folder in sorted(path for path in CONF.iterdir() if path.is_dir()):
        rows = [[f"`{path.stem}`", _first_words(path)] for path in sorted(folder.glob("*.yaml"))]
        parts.append(f"## {folder.name}\n\n{_table(['choice', 'what it is'], rows)}")
    return "\n\n".join(parts) + "\n"


def _first_words(path: Path) -> str:
    """The comment that a file begins with, or else what it sets."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("# @package")]
    words = [line.lstrip("# ") for line in takewhile(lambda line: line.startswith("#"), lines)]
    if words:
        return " ".join(words)
    given: Any = OmegaConf.to_container(OmegaConf.load(path)) or {}
    said = {key: value for key, value in given.items() if key not in ("defaults", "name", "hydra")}
    return ", ".join(f"`{key}: {json.dumps(value)}`" for key, value in said.items())


def options() -> str:
    """Every option, with its values and its default."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed: Any = OmegaConf.to_container(compose("config"))
    schema, told = schema_of(Config), dict(meanings(Config))
    parts = [_page("Options", "Which options are there, and what may they be?", OPTIONS)]
    alone: list[list[str]] = []
    for name, part in schema["properties"].items():
        inner = _resolved(part, schema)
        if "properties" in inner:
            text = _prose(inner.get("description", "").partition("Attributes:")[0])
            rows = list(_rows(name, inner, schema, composed.get(name), told))
            parts.append(f"## {name}\n\n{text}\n\n{_table(OPTION, rows)}")
        else:
            alone.append(_row(name, part, schema, composed.get(name), told))
    parts.insert(1, f"## Single values\n\n{_table(OPTION, alone)}")
    return "\n\n".join(parts) + "\n"


def meanings(kind: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The fields of a dataclass and of those in it, with what their docstrings say of them."""
    hints, (_, told) = get_type_hints(kind), attributes(kind)
    for one in fields(kind):
        yield f"{prefix}{one.name}", told.get(one.name, "")
        for inner in (hints[one.name], *get_args(hints[one.name])):
            if is_dataclass(inner) and isinstance(inner, type):
                yield from meanings(inner, f"{prefix}{one.name}.")


def _rows(
    prefix: str, part: Mapping[str, Any], schema: Mapping[str, Any], given: Any, told: Mapping[str, str]
) -> Iterator[list[str]]:
    for name, one in part["properties"].items():
        inner = _resolved(one, schema)
        value = given.get(name) if isinstance(given, Mapping) else None
        if "properties" in inner and "anyOf" not in one:
            yield from _rows(f"{prefix}.{name}", inner, schema, value, told)
        else:
            yield _row(f"{prefix}.{name}", one, schema, value, told)


def _row(name: str, part: Mapping[str, Any], schema: Mapping[str, Any], given: Any, told: Mapping[str, str]) -> list[str]:
    default = part.get("default") if given is None else given
    said = "" if isinstance(default, (dict, list)) and len(json.dumps(default)) > 40 else f"`{json.dumps(default)}`"
    return [f"`{name}`", _values(part, schema), said, _prose(told.get(name, ""))]


def _resolved(part: Mapping[str, Any], schema: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(part)
    while "$ref" in found:
        found = schema["$defs"][found["$ref"].rpartition("/")[2]] | {key: found[key] for key in found if key != "$ref"}
    return found


def _values(part: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    """What a value may be, in words."""
    inner = _resolved(part, schema)
    if "anyOf" in inner:
        told = " or ".join(_values(one, schema) for one in inner["anyOf"])
    elif "enum" in inner:
        told = ", ".join(f"`{json.dumps(one)}`" if not isinstance(one, str) else f"`{one}`" for one in inner["enum"])
    elif "const" in inner:
        told = f"`{inner['const']}`"
    elif inner.get("required") == ["_target_"]:
        told = NODE
    else:
        told = {
            "integer": "integer", "number": "number", "boolean": "`true`, `false`", "string": "text", "null": "`null`",
            "array": "list", "object": "mapping",
        }.get(inner.get("type", ""), "any")  # fmt: skip
        bounds = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
        told += "".join(f" {sign} {inner[key]}" for key, sign in bounds.items() if key in inner)
    described = inner.get("description") if "properties" not in inner else None
    return f"{told} ({_prose(described.partition('Attributes:')[0])})" if described else told


def steps() -> str:
    """What the slots of a quantizer and the ranges in them take."""
    parts = [_page("Steps and ranges", "What do the steps of a method take?", STEPS), "## Steps"]
    kinds = [getattr(methods, name) for name in methods.__all__]
    parts += [_class_part(kind) for kind in kinds if issubclass(kind, Step) and not isabstract(kind)]
    parts.append("## Ranges")
    parts += [_class_part(one) for one in (ranges.MinMax, ranges.NormSearch, percentile.Percentile)]
    return "\n\n".join(parts) + "\n"


def _class_part(kind: type) -> str:
    prose, told = attributes(kind)
    table = _table(["option", "type", "default", "meaning"], rows) if (rows := _fields(kind, told)) else "No options."
    return f"### {kind.__name__}\n\n`{kind.__module__}.{kind.__qualname__}`\n\n{_prose(prose)}\n\n{table}"


def _fields(kind: Any, told: Mapping[str, str]) -> list[list[str]]:
    """A row for each field of a dataclass: its name, type, default and meaning."""
    hints = get_type_hints(kind)
    return [
        [
            f"`{one.name}`",
            _type_name(hints[one.name]),
            "" if one.default is MISSING else f"`{one.default}`",
            _prose(told.get(one.name, "")),
        ]
        for one in fields(kind)
        if one.init
    ]


def record() -> str:
    """The fields of a record, and the numbers that it may hold."""
    parts = [_page("Fields of a record", "Which fields and numbers does a record have, and what do they mean?", FIELDS)]
    for kind in (shape.Shape, shape.Axes, shape.Protocol, shape.Floor, shape.Made, shape.Measure, shape.Described):
        prose, told = attributes(kind)
        rows = [[name, type_, meaning] for name, type_, _, meaning in _fields(kind, told)]
        title = "Record" if kind is shape.Shape else kind.__name__
        parts.append(f"## {title}\n\n{_prose(prose)}\n\n{_table(['key', 'type', 'meaning'], rows)}")
    rows = [
        [f"`{one.key}`", one.title, one.kind, f"{one.factor:g}", "higher" if one.higher else "lower"]
        for one in sorted(numbers.shipped().values(), key=lambda one: one.key)
    ]
    parts.append(f"## Numbers\n\n{NUMBERS}\n\n{_table(['key', 'title', 'kind', 'factor', 'better'], rows)}")
    return "\n\n".join(parts) + "\n"


def _type_name(hint: Any) -> str:
    """A type without the modules that it is from; a node of Hydra's by what it is."""
    if hint == dict[str, Any]:
        return NODE
    name = hint.__name__ if isinstance(hint, type) and not get_args(hint) else re.sub(r"\b(\w+\.)+", "", str(hint))
    return f"`{name}`"


def commands() -> str:
    """What each command says of itself."""
    parts = [_page("Commands", "What can be typed?", TYPED)]
    for name, (module, what) in COMMANDS.items():
        spec = find_spec(f"{module}.__main__") if (TOP / "src" / module.replace(".", "/")).is_dir() else find_spec(module)
        assert spec is not None and spec.origin is not None
        said = (ast.get_docstring(ast.parse(Path(spec.origin).read_text())) or "").replace("``", "`")
        parts.append(f"## qdexp {name}\n\n`python -m {module}`: {what}.\n\n```text\n{said}\n```")
    return "\n\n".join(parts) + "\n"


def _page(title: str, question: str, source: str) -> str:
    return f"# {title}\n\n{question}\n\n{source}"


def _prose(text: str) -> str:
    """A docstring as Markdown."""
    lines = [line.strip() for line in text.strip().splitlines()]
    return re.sub(r"``([^`]+)``", r"`\1`", "\n".join(lines))


def _table(head: list[str], rows: list[list[str]]) -> str:
    cells = [[one.replace("|", "\\|").replace("\n", " ") for one in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *cells])
