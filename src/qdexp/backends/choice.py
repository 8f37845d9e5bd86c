"""The choice of a backend: for a cell by its config, for ``qdexp.load`` by a name or as an object."""

from typing import Any

from omegaconf import OmegaConf

from qdexp import backends
from qdexp.backends.base import Backend, NamedBackend
from qdexp.config import Config
from qdexp.errors import UserError
from qdexp.paths import conf_folder
from qdexp.targets import TARGET, made

OPTION, NAME = "backend", "name"


def of_config(config: Config) -> NamedBackend:
    """The backend of a cell. Raises UserError, one line with the option, where there is none such."""
    backend = _made(config.backend)
    if not isinstance(config.backend.get(NAME), str):
        raise UserError(f"{OPTION}.{NAME}: is missing; give the name that tables call it by")
    try:
        return NamedBackend(config.backend[TARGET], backend, backend.files())
    except ValueError as error:
        raise UserError(f"{OPTION}.{error}") from error


def check(config: Config) -> None:
    """Raises UserError for what the backend cannot do in this cell."""
    try:
        of_config(config).backend.check(config)
    except ValueError as error:
        raise UserError(f"{OPTION}.{error}") from error


def named(backend: str | Backend) -> Backend:
    """Return one of qdexp's backends by its name, or an object that is one already. Raises UserError where it is neither."""
    if isinstance(backend, Backend):
        return backend
    if backend not in names():
        raise UserError(f"backend={backend}: there is no such backend; there are {', '.join(names())}, and instances of "
                        f"subclasses of {backends.__name__}.{Backend.__name__}")  # fmt: skip
    return _made(OmegaConf.to_container(OmegaConf.load(conf_folder() / OPTION / f"{backend}.yaml")))


def names() -> list[str]:
    """The names of qdexp's backends."""
    return sorted(path.stem for path in (conf_folder() / OPTION).glob("*.yaml"))


def _made(node: Any) -> Backend:
    return made(Backend, node, OPTION, ours=backends.__name__, without=(NAME,))  # type: ignore[type-abstract]
