"""From noise to images, or to trajectories: one seed a sample, so that neither batches nor processes change an image."""
