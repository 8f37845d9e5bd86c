"""Mirrors of finished records. The records are the truth; nothing here lies on the path of a measurement."""
