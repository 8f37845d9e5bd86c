"""Peak signal-to-noise ratio of images, pixels in [0, 1]: PSNR = -10 log10(mean squared distance), in dB."""

import numpy as np
from numpy.typing import NDArray

LEAST = 1e-10
"""The mean squared distance below which PSNR does not grow: equal images have none that is finite."""


def psnr(distance: NDArray[np.floating]) -> NDArray[np.float64]:
    """PSNR in dB of each mean squared distance, float64 of its shape."""
    ratio: NDArray[np.float64] = -10 * np.log10(distance.astype(np.float64).clip(LEAST))
    return ratio
