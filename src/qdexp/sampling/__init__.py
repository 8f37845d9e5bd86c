"""Sampling from noise to images, or to trajectories: one seed per sample, so that neither batches nor processes change an
image."""
