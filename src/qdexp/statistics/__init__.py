"""Intervals: estimates with their jackknife replicates, compared in pairs on the same noise."""
