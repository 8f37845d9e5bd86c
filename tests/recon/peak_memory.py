"""The peak of a process that learns the weights of a U-Net of 1.6 million parameters, block by block.

python tests/recon/peak_memory.py FOLDER BATCHES [HOST_GB]     prints MiB; a batch is 32 images of 32 x 32
"""

import sys
from pathlib import Path

import torch
from diffusers import UNet2DModel
from recon_helpers import pair, recon

from qdexp import meter
from qdexp.config import Memory


def main(folder: Path, batches: int, host_gb: float | None) -> float:
    """The peak, in MiB, of the walk alone."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=32, in_channels=1, out_channels=1, layers_per_block=1, block_out_channels=(32, 64), norm_num_groups=8,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    ).eval()  # fmt: skip
    data = [(torch.randn(32, 1, 32, 32), torch.randint(0, 1000, (32,))) for _ in range(batches)]
    one = pair(network, [data[0]], 4)
    walk = one.walk(folder, recon(batch=8, heldout=8, start="gptq", iterations=2), memory=Memory(host_gb=host_gb or "auto"))
    return meter.measure(torch.device("cpu"), lambda: walk.learn_weights(data))["peak_memory_mb"]


if __name__ == "__main__":
    folder, batches, *limit = sys.argv[1:]
    print(main(Path(folder), int(batches), float(limit[0]) if limit else None))
