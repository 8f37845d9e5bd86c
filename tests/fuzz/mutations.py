"""What may become of a file: values of another type, missing parts, text that means something elsewhere, lost bytes.

How much is tried: FUZZ=10 makes up ten times as many examples, other ones each time (docs/contributing.md).
"""

import json
import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

Json = Any

MORE = int(os.environ.get("FUZZ", "0"))

TEXTS = (
    "",
    "../../../etc/passwd",
    "/etc/passwd",
    ".hidden",
    "a/b",
    "=1+1",
    "\x1b[2J",
    "a\nb\r\tc",
    "\x00",
    "\u2028",
    "\ud800",
    "{{ 7 * 7 }}",
    "</script><script>alert(1)</script>",
    "\\input{x} $x$ & % # _ ~ ^",
    "[/bold] [link=x] | `x`",
    "${oc.env:HOME}",
    "NaN",
    "x" * 300,
    "qdexp.errors.UserError",
)
INTEGERS = (0, -1, 3, 2**31, 2**63, 2**64, -(10**30), 10**400)
FLOATS = (0.0, -0.0, 0.5, 1e308, 5e-324, float("nan"), float("inf"), -float("inf"))
DEEP = (10, 100, 600)
"""Levels of lists within lists."""


def examples(number: int) -> settings:
    """So many of them; more where FUZZ asks for it."""
    return settings(
        max_examples=number * max(1, MORE),
        derandomize=not MORE,
        print_blob=bool(MORE),
        database=None,
        deadline=None,
        phases=[Phase.explicit, Phase.generate],  # to make a find smaller takes minutes
        suppress_health_check=list(HealthCheck),  # the examples of a test share a folder, and time is what there is
    )


def nested(levels: int) -> Json:
    value: Json = 0
    for _ in range(levels):
        value = [value]
    return value


def copied(tree: Json) -> Json:
    return json.loads(json.dumps(tree))


VALUES: st.SearchStrategy[Json] = st.one_of(
    st.sampled_from([None, True, False]),
    st.sampled_from(INTEGERS),
    st.sampled_from(FLOATS),
    st.sampled_from(TEXTS),
    st.text(max_size=8),
    st.sampled_from(DEEP).map(nested),
    st.sampled_from(["[]", "{}", "[[]]", '{"": null}', "[null]", '{"_target_": "os.system"}', '[1.0, "x"]']).map(json.loads),
)


def places(tree: Json) -> list[tuple[Json, Any]]:
    """Every container within, with a key or an index."""
    found, waiting = [], [tree]
    while waiting:
        one = waiting.pop()
        keys = list(one) if isinstance(one, dict) else range(len(one)) if isinstance(one, list) else []
        found += [(one, key) for key in keys]
        waiting += [one[key] for key in keys]
    return found


@st.composite
def mutated(draw: Callable[..., Any], tree: Json, most: int = 3) -> Json:
    """The tree with one to ``most`` changes: a value replaced, taken away, put beside, or one of another place."""
    changed = copied(tree)
    for _ in range(draw(st.integers(1, most))):
        found = places(changed)
        if not found:
            return draw(VALUES)
        container, key = found[draw(st.integers(0, len(found) - 1))]
        match draw(st.sampled_from(["replace", "replace", "remove", "add", "exchange"])):
            case "replace":
                container[key] = draw(VALUES)
            case "remove":
                del container[key]
            case "add" if isinstance(container, dict):
                container[draw(st.sampled_from(TEXTS))] = draw(VALUES)
            case "add":
                container.append(draw(VALUES))
            case "exchange":
                other, at = found[draw(st.integers(0, len(found) - 1))]
                container[key] = copied(other[at])
    return changed


@st.composite
def damaged(draw: Callable[..., Any], content: bytes) -> bytes:
    """Bytes cut off, flipped, or put in between."""
    at = draw(st.integers(0, max(0, len(content) - 1)))
    match draw(st.sampled_from(["cut", "flip", "insert", "cut in front"])):
        case "cut":
            return content[:at]
        case "flip":
            return content[:at] + bytes([content[at] ^ (1 << draw(st.integers(0, 7)))]) + content[at + 1 :] if content else b""
        case "insert":
            return content[:at] + draw(st.binary(min_size=1, max_size=8)) + content[at:]
    return content[at:]
