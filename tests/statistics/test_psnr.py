import numpy as np
import pytest

from qdexp.statistics.psnr import psnr


def test_in_decibels_and_finite_for_equal_images() -> None:
    assert psnr(np.array([1.0, 0.1, 0.001, 0.0], dtype=np.float32)).tolist() == pytest.approx([0, 10, 30, 100], abs=1e-4)
