"""Builds a reference once, from real images:

    python -m qdexp.metrics.build cifar10-train --out cifar10.safetensors
    python -m qdexp.metrics.build lsun/bedroom --prepare ldm --size 256 --out bedroom.safetensors

The images are one of torch-fidelity's registered inputs, in its folder of data sets, or a folder (an LSUN export, too), read in
the order of its paths; what was read and what was left out is printed, and kept in the reference. Then:
protocol.reference=cifar10.safetensors protocol.extractor=inception-v3. Of --extractor dinov2-vit-l-14 it is one for FD-DINOv2:
metric=[standard,fd_dinov2] metric.fd_dinov2.reference=FILE. A module of your own is named in both as the same mapping, for
example '{_target_: mine.Features, size: 32}'.
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from torch.utils.data import Subset
from torch_fidelity.registry import DATASETS_REGISTRY

from qdexp import files
from qdexp.arguments import Parser
from qdexp.device import make_repeatable, resolve
from qdexp.errors import UserError, one_line
from qdexp.metrics import dinov2, own, reference
from qdexp.metrics.extractor import Extractor
from qdexp.metrics.extractors import EXTRACTORS, INCEPTION
from qdexp.metrics.features import extract
from qdexp.metrics.preparation import PREPARATIONS, ImageFolder, common_side

BATCH = 64
EXAMPLE = "'{_target_: mine.Features, size: 32}'"


def known() -> dict[str, Extractor]:
    """The extractors of RGB images, as which all images are read."""
    return {name: one for name, one in (EXTRACTORS | dinov2.EXTRACTORS).items() if one.shape in ((), (3,))}


def images_of(args: argparse.Namespace) -> ImageFolder | Any:
    """The images that the command names. Raises UserError where they are not there."""
    if args.images not in DATASETS_REGISTRY:
        if not Path(args.images).is_dir():
            raise UserError(f"{args.images}: no folder, and none of {', '.join(sorted(DATASETS_REGISTRY))}; name one of these")
        if args.size is None and args.prepare != "none":
            raise UserError("--size is missing: name the pixels of a side, as the model draws them")
        return ImageFolder(Path(args.images), args.prepare, args.size or common_side(Path(args.images)))
    root = args.root or Path(torch.hub.get_dir()).parent / "fidelity_datasets"
    try:
        return DATASETS_REGISTRY[args.images](str(root), False)
    except (RuntimeError, OSError) as error:
        raise UserError(f"{args.images}: not in {root}; put it there, or name its folder by --root") from error


def extractor_of(args: argparse.Namespace) -> Extractor:
    """The extractor that the command names. Raises UserError where there is none."""
    if args.extractor.startswith("{"):
        try:  # as the command that is to use it reads it
            node: Any = OverridesParser.create().parse_override(f"extractor={args.extractor}").value()
        except HydraException as error:
            raise UserError(f"--extractor {args.extractor}: cannot be read; give {EXAMPLE}") from error
        return own.made(node, args.weights)
    if args.extractor not in known():
        raise UserError(f"--extractor {args.extractor}: there is none of this name; choose one of {', '.join(known())}, or a "
                        f"module of yours as {EXAMPLE}")  # fmt: skip
    extractor = known()[args.extractor]
    extractor = extractor if args.weights is None else replace(extractor, weights=Path(args.weights))
    return extractor if args.digest is None else replace(extractor, digest=args.digest)


def build(args: argparse.Namespace) -> None:
    """Extracts features and writes the reference. Raises UserError before that where something is missing or cannot be."""
    for option, least in (("n", 2), ("size", 1), ("keep", 0)):
        value = getattr(args, option)
        if value is not None and value < least:
            raise UserError(f"--{option} {value}: choose at least {least}")
    if args.out.is_dir():
        raise UserError(f"--out {args.out}: is a folder; name a file, {args.out / 'reference.safetensors'}")
    files.require_writable(args.out.parent, f"--out {args.out}")
    extractor = extractor_of(args)
    if not (extractor.random or isinstance(extractor, own.OwnExtractor) or extractor.weights.is_file()):
        raise UserError(
            f"--weights {extractor.weights}: no such file; fetch {extractor.publisher}, and put it there or name its place"
        )
    images = images_of(args)
    count = min(args.n or len(images), len(images))
    if count < 2:
        raise UserError(f"{args.images}: holds 1 image, which has no covariance; FID needs thousands, and at least 2")
    make_repeatable()
    found = extract(extractor, Subset(images, range(count)), BATCH, resolve("auto"))
    parts = reference.statistics(found.pool)
    if found.spatial is not None:
        parts |= {f"{name}_s": value for name, value in reference.statistics(found.spatial).items()}
    kept = torch.randperm(len(found.pool), generator=torch.Generator().manual_seed(0))[: args.keep]
    dataset = f"{Path(args.images).name}, {count} images, prepared {args.prepare}"
    account = images.account if isinstance(images, ImageFolder) else ""
    reference.write(args.out, {**parts, "features": found.pool[kept]}, extractor, dataset, account)
    print(f"{args.out}: {dataset}, features of {extractor.name} {extractor.digest[:8]}")
    if account:
        print(f"read {account}")


def main() -> None:
    parser = Parser("python -m qdexp.metrics.build", __doc__)
    parser.add_argument("images", help="a folder, or the name of one of torch-fidelity's inputs")
    parser.add_argument("--out", type=Path, required=True, help="the reference file")
    parser.add_argument("--extractor", default=INCEPTION.name, help=f"{', '.join(known())}, or a module of your own")
    parser.add_argument("--weights", help="of the extractor; without: torch-fidelity's cache")
    parser.add_argument("--digest", help="SHA-256 of other weights than the published ones, of DINOv2")
    parser.add_argument("--prepare", default="none", choices=list(PREPARATIONS), help="crop and resize of a folder's images")
    parser.add_argument("--size", type=int, help="pixels of a side, of a folder's images; without: that of them all")
    parser.add_argument("--n", type=int, help="only the first n images")
    parser.add_argument("--keep", type=int, default=10_000, help="features kept for KID, precision and recall")
    parser.add_argument("--root", type=Path, help="where torch-fidelity's data sets lie")
    with one_line():
        build(parser.parse_args())


if __name__ == "__main__":
    main()
