"""Variables of the environment, for a while."""

import contextlib
import os
from collections.abc import Iterator, Mapping


@contextlib.contextmanager
def variables(ours: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for a while, for this process and those that it starts, and restore them afterwards."""
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
