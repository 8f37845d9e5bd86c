"""How fast quantized networks run in each arithmetic: `python -m benchmarks execution`."""
