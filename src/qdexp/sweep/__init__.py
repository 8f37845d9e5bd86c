"""Sweeps, from cells to records: freeze, plan, run here or submit, look, collect.

``python -m qdexp.sweep`` looks after sweeps.
"""
