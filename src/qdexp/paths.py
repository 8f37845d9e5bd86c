"""Places of qdexp's own files: the configs and the embedded models."""

from pathlib import Path

PACKAGE = Path(__file__).parent
ZOO = PACKAGE / "zoo"


def conf_folder() -> Path:
    """The Hydra config folder: ``conf/`` at the top of a checkout, or the copy inside an installed wheel."""
    installed = PACKAGE / "conf"
    return installed if installed.is_dir() else PACKAGE.parents[1] / "conf"
