"""Imported modules stay as long as the process, so that garbage collection need not look through them again and again."""

import contextlib
import gc
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def imports() -> Iterator[None]:
    """No garbage is collected within, and what is there at the end never looked at again; for imports that are large."""
    enabled, before = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > before:  # else what is there now may be garbage tomorrow
            gc.freeze()
        if enabled:
            gc.enable()
