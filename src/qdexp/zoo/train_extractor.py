"""Trains the embedded feature extractor ``fashion-cnn`` and measures its reference statistics on Fashion-MNIST.

    python -m qdexp.zoo.train_extractor --out runs/fashion_cnn

The same command again goes on from the last epoch in ``--out``. Writes ``model.safetensors`` and ``reference.safetensors``, and
prints the weights' digest, which ``qdexp.metrics.extractors`` pins, and what the card states: test accuracy, and the scores of
the 10,000 held-out images, the best that samples can hope for.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn.functional import cross_entropy, pad
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from qdexp.device import resolve
from qdexp.files import sha256, write_tensors
from qdexp.metrics import reference
from qdexp.metrics.extractor import Extractor
from qdexp.metrics.extractors import FASHION_CNN
from qdexp.metrics.features import extract
from qdexp.metrics.fid import Fid, floor
from qdexp.metrics.inception_score import InceptionScore
from qdexp.metrics.kid import Kid
from qdexp.metrics.precision_recall import PrecisionRecall
from qdexp.zoo import fashion
from qdexp.zoo.extractor import FashionCNN

SHIFT = 2  # pixels
KEPT = 10_000  # training images whose features the reference keeps


def augment(images: Tensor, seed: int) -> Tensor:
    """Mirrors each image [n, c, h, w] with probability 1/2 and shifts it by up to ``SHIFT`` pixels each way."""
    generator = torch.Generator().manual_seed(seed)
    n, _, height, width = images.shape
    down, right = torch.randint(2 * SHIFT + 1, (2, n, 1), generator=generator)
    rows, columns = down + torch.arange(height), right + torch.arange(width)
    columns = torch.where(torch.rand(n, 1, generator=generator) < 0.5, columns, columns.flip(1))
    padded = pad(images, [SHIFT] * 4).movedim(1, -1)
    return padded[torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]].movedim(-1, 1)


class ExtractorTraining(pl.LightningModule):
    """Cross-entropy under AdamW; one cycle of the learning rate (Smith and Topin, arXiv 1708.07120), stepped every batch."""

    def __init__(self, lr: float, weight_decay: float) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lr, self.weight_decay = lr, weight_decay
        self.network = FashionCNN().to(memory_format=torch.channels_last)

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        """Mean cross-entropy of one augmented batch."""
        images, labels = batch
        # seeded by the step: a resumed run draws what an uninterrupted one draws
        loss = cross_entropy(self.network(augment(images, self.global_step))[1], labels)
        self.log("train/loss", loss)
        return loss

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW and its one cycle."""
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=self.lr, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def train(args: argparse.Namespace) -> Path:
    """Trains, or goes on training, and returns the weights file."""
    pl.seed_everything(0)
    module = ExtractorTraining(args.lr, args.weight_decay)
    data = TensorDataset(*fashion.load("train", args.data))
    # its order depends on seed and epoch alone, which resuming needs; there is only one process
    order: DistributedSampler[tuple[Tensor, ...]] = DistributedSampler(data, num_replicas=1, rank=0, shuffle=True, seed=0)
    trainer = pl.Trainer(
        max_epochs=args.epochs,
        precision=args.precision,
        logger=CSVLogger(args.out, name="curve"),
        callbacks=[ModelCheckpoint(args.out, filename="last", enable_version_counter=False)],
        log_every_n_steps=20,
        enable_progress_bar=False,
    )
    last = args.out / "last.ckpt"
    trainer.fit(module, DataLoader(data, args.batch, sampler=order), ckpt_path=last if last.exists() else None)
    weights = args.out / "model.safetensors"
    write_tensors(weights, {name: value.contiguous() for name, value in module.network.state_dict().items()})
    return weights


def measure(extractor: Extractor, data: Path, out: Path) -> dict[str, object]:
    """Writes the reference and returns the figures of the card."""
    images, labels = fashion.load("test", data)
    device = resolve("auto")
    held_out = extract(extractor, images, 500, device)
    pool = extract(extractor, fashion.load("train", data)[0], 500, device).pool
    path = out / "reference.safetensors"
    kept = torch.randperm(len(pool), generator=torch.Generator().manual_seed(0))[:KEPT]
    parts = {**reference.statistics(pool), "features": pool[kept], "floor_features": held_out.pool}
    reference.write(path, parts, extractor, dataset="fashion-mnist train")
    real = reference.Reference.load(path)
    metrics = (Fid(), Kid(seed=0), PrecisionRecall())
    scores = {key: found for metric in metrics for key, found in metric.score(held_out, real).items()}
    scores |= InceptionScore(seed=0).score(held_out)
    assert held_out.logits is not None
    return {
        "weights_sha256": extractor.digest,
        "parameters": sum(p.numel() for p in FashionCNN().parameters()),
        "test_accuracy": (held_out.logits.argmax(1) == labels).double().mean().item(),
        "held_out_scores": {key: getattr(found, "value", found) for key, found in scores.items()},
        "fid_floor": {n: floor(real, n) for n in (1024, 2048, 5000, 10_000)},
    }


def main() -> None:
    """Trains, measures, prints the figures of the card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=fashion.DEBIAN_FOLDER, help="folder with the four *.gz files")
    parser.add_argument("--out", type=Path, required=True, help="checkpoints, loss curve, weights and reference go here")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--weight-decay", type=float, default=0.05)
    parser.add_argument("--precision", default="bf16-mixed")
    args = parser.parse_args()

    weights = train(args)
    extractor = replace(FASHION_CNN, weights=weights, digest=sha256(weights))
    print(json.dumps(measure(extractor, args.data, args.out), indent=2))


if __name__ == "__main__":
    main()
