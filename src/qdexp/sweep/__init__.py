"""From the cells of a sweep to their records: freeze, plan, run here or submit, look, collect.

``python -m qdexp.sweep`` looks after sweeps.
"""
