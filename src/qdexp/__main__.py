"""``python -m qdexp``: one cell, or with ``-m`` a sweep of cells."""

import os
import sys

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from qdexp.config import register_resolvers
from qdexp.errors import UserError
from qdexp.paths import conf_folder


@hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="config")
def app(cfg: DictConfig) -> str:
    from qdexp.sweep import run  # torch is loaded here, not for --help

    return run(cfg)


def main() -> None:
    register_resolvers()
    # Hydra shall pass errors on: what a user can mend is printed below in one line
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    try:
        app()
    except (UserError, HydraException, OmegaConfBaseException) as error:
        sys.exit(f"qdexp: {error}")
    except KeyboardInterrupt:
        sys.exit("qdexp: stopped; finished stages are kept, the same command goes on")


if __name__ == "__main__":
    main()
