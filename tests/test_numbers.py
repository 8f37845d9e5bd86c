"""How numbers are shown."""

import pytest

from qdexp.numbers import Number


@pytest.mark.parametrize(
    ("value", "shown"), [(0.0, "0.00"), (0.00864, "0.0086"), (0.0124, "0.012"), (0.104, "0.10"), (35.746, "35.75")]
)
def test_a_small_cost_is_not_nothing(value: float, shown: str) -> None:
    assert Number("size_stored_mb", "stored MB", kind="cost").text(value) == shown


def test_a_small_distance_is() -> None:
    assert Number("fid", "FID").text(0.0012) == "0.00"
