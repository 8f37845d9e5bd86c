"""Layers and attention of a quantized network on the integer kernels of a CPU."""
