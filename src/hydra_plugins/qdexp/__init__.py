"""The Hydra plugins of qdexp: light modules, since Hydra loads them before it prints --help."""
