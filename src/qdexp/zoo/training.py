"""Training of the embedded models: the simple loss of DDPM (Ho et al. 2020, eq. 14) on Fashion-MNIST.

The same command again goes on from the last checkpoint in ``--out``; a smaller ``--steps`` then starts the cool-down early.
Writes ``model.safetensors``, the exponential moving average (EMA) of the weights, when the last step is done.
"""

import argparse
from pathlib import Path

import pytorch_lightning as pl
import torch
from diffusers import DDPMScheduler
from hydra.utils import instantiate
from omegaconf import OmegaConf
from pytorch_lightning.callbacks import EMAWeightAveraging, LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

from qdexp.files import write_tensors
from qdexp.paths import conf_folder
from qdexp.zoo import fashion


class NoiseTraining(pl.LightningModule):
    """Learns eps(x_t, t). Learning rate: linear warm-up, constant, linear cool-down over the last ``cooldown`` of the steps.

    ``model`` is the name of the configuration that gives network and noise schedule.
    """

    def __init__(self, model: str, lr: float, warmup: int, steps: int, cooldown: float) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lr, self.warmup, self.steps, self.cooldown = lr, warmup, steps, cooldown
        config = OmegaConf.load(conf_folder() / "model" / f"{model}.yaml")
        self.network: torch.nn.Module = instantiate(config.network, _convert_="all")
        self.schedule = DDPMScheduler(**config.schedule)

    def estimate(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """eps [n, c, h, w]; ``labels`` int64 [n] are for networks that read them."""
        eps: Tensor = self.network(x_t, t, return_dict=False)[0]
        return eps

    def loss(self, x_0: Tensor, labels: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        x_t = self.schedule.add_noise(x_0, noise, t).to(memory_format=torch.channels_last)
        return (self.estimate(x_t, t, labels).float() - noise).square().mean()

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        x_0 = fashion.to_model_range(batch[0])
        t = torch.randint(len(self.schedule), (len(x_0),), device=x_0.device)
        loss = self.loss(x_0, batch[1], t, torch.randn_like(x_0))
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: list[Tensor], index: int) -> None:
        x_0 = fashion.to_model_range(batch[0])
        fixed = torch.Generator().manual_seed(index)
        t = torch.randint(len(self.schedule), (len(x_0),), generator=fixed).to(x_0.device)
        noise = torch.randn(x_0.shape, generator=fixed).to(x_0.device)
        self.log("val/loss", self.loss(x_0, batch[1], t, noise))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = torch.optim.AdamW(self.network.parameters(), lr=self.lr, weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _rate(self, step: int) -> float:
        return min(1.0, (step + 1) / self.warmup, max(self.steps - step, 0) / (self.cooldown * self.steps))


def parse(description: str | None, batch: int, lr: float) -> argparse.Namespace:
    """The options of a training command; ``batch`` and ``lr`` are its defaults."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=fashion.DEBIAN_FOLDER, help="folder with the four *.gz files")
    parser.add_argument("--out", type=Path, required=True, help="checkpoints, loss curve and weights go here")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--lr", type=float, default=lr)
    parser.add_argument("--warmup", type=int, default=300)
    parser.add_argument("--cooldown", type=float, default=0.25)
    parser.add_argument("--ema", type=float, default=0.999)
    parser.add_argument("--precision", default="bf16-mixed")
    parser.add_argument("--compile", action="store_true", help="compile the network: one or two minutes, then faster steps")
    return parser.parse_args()


def train(kind: type[NoiseTraining], model: str, args: argparse.Namespace) -> None:
    """Trains ``model``, or goes on training it, and writes the averaged weights."""
    pl.seed_everything(0)
    module = kind(model, args.lr, args.warmup, args.steps, args.cooldown)
    module.network.to(memory_format=torch.channels_last)
    if args.compile:
        module.network.compile()
    data = TensorDataset(*fashion.load("train", args.data))
    held_out = TensorDataset(*(part[:2048] for part in fashion.load("test", args.data)))
    # one endless epoch: the number of steps is the only length
    sampler = RandomSampler(data, replacement=True, num_samples=args.steps * args.batch)
    trainer = _trainer(args)
    last = args.out / "last.ckpt"
    trainer.fit(
        module,
        DataLoader(data, args.batch, sampler=sampler, drop_last=True),
        DataLoader(held_out, 256),
        ckpt_path=last if last.exists() else None,
    )
    weights = {name: value.contiguous() for name, value in module.network.state_dict().items()}
    write_tensors(args.out / "model.safetensors", weights)
    trainer.validate(module, DataLoader(held_out, 256))  # of the averaged weights, which the module holds now


def _trainer(args: argparse.Namespace) -> pl.Trainer:
    return pl.Trainer(
        max_steps=args.steps,
        precision=args.precision,
        gradient_clip_val=1.0,
        logger=CSVLogger(args.out, name="curve"),
        callbacks=[
            EMAWeightAveraging(decay=args.ema, update_starting_at_step=args.warmup),
            ModelCheckpoint(args.out, filename="last", every_n_train_steps=250, enable_version_counter=False),
            LearningRateMonitor(),
        ],
        val_check_interval=min(1000, args.steps),
        num_sanity_val_steps=0,
        log_every_n_steps=50,
        enable_progress_bar=False,
    )
