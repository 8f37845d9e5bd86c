"""Quantized networks for other runtimes: ``python -m qdexp.export CELL``."""
