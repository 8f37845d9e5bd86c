"""A quantized network as an ONNX model: exported by torch, its weights narrowed to the integers that they are."""

import copy
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from qdexp import calling, files
from qdexp.errors import UserError
from qdexp.export.qdq import BITS, OPSET, to_qdq
from qdexp.quant.blocks import Batch, arguments

T = TypeVar("T")
SAMPLE, TIMESTEP, OUTPUT = "sample", "timestep", "out_sample"
"""The names of inputs and output, as in Optimum's pipelines; conditions have the names of the network's arguments."""
LARGEST = 2**31 - 2**24
"""Bytes of one file: protobuf holds no more than 2 GB. Larger weights lie in a second file beside it."""
_FOUR_BITS = {False: ir.DataType.UINT4, True: ir.DataType.INT4}


class _Called(nn.Module):
    """The network as one function of tensors to one tensor."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, sample: Tensor, timestep: Tensor, named: dict[str, Any]) -> Tensor:
        for values in (timestep, *pytree.tree_leaves(named)):
            torch._check(values.shape[0] == sample.shape[0])  # one unknown number of rows, not one for each input
        estimate: Tensor = calling.estimate_of(calling.call(self.network, sample, timestep, named))
        return estimate


def input_names(batch: Batch) -> list[str]:
    """The names of all inputs, in order."""
    _, named = arguments(batch)
    paths: Any = pytree.tree_flatten_with_path(named)[0]
    return [SAMPLE, TIMESTEP, *(str(path[-1].key) for path, _ in paths)]


def feeds(batch: Batch) -> dict[str, Any]:
    """The arrays of a batch by the names of inputs."""
    args, named = arguments(batch)
    leaves = [*args, *pytree.tree_leaves(named)]
    return {name: leaf.numpy() for name, leaf in zip(input_names(batch), leaves, strict=True)}


@torch.no_grad()
def exported(network: nn.Module, batch: Batch, narrowest: int) -> ir.Model:
    """The model of a quantized network, which is not changed.

    Args:
        network: All its schemes can be held, see ``limits``.
        batch: Two rows or more that it can be called with, x_t, t and named conditions; the number of rows stays open.
        narrowest: See ``to_qdq``.

    Raises:
        qdexp.errors.UserError: torch cannot export it.
    """
    network = copy.deepcopy(network)
    to_qdq(network, narrowest)
    args, named = arguments(batch)
    rows = torch.export.Dim("batch")
    shapes = {SAMPLE: {0: rows}, TIMESTEP: {0: rows}, "named": pytree.tree_map(lambda _: {0: rows}, named)}
    try:
        with warnings.catch_warnings():  # of deprecations inside of torch, and of names of axes
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                _Called(network).eval(),
                args,
                kwargs={"named": named},
                dynamo=True,
                opset_version=OPSET,
                input_names=input_names(batch),
                output_names=[OUTPUT],
                dynamic_shapes=shapes,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise UserError(f"model.network: torch.onnx cannot export it: {_reason(error)}") from error
    assert program is not None
    model: ir.Model = program.model
    _narrow(model)
    for value in list(model.graph.initializers.values()):
        value.name = str(value.name).removeprefix("network.")
    return model


def _reason(error: BaseException) -> str:
    """The first line of what the error was raised from."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _narrow(model: ir.Model) -> None:
    """Put integers of 4 bits where those of 8 stand for them."""
    found: dict[tuple[str, ir.DataType], ir.Value] = {}
    for node in model.graph:
        bits = node.metadata_props.get(BITS)
        node.metadata_props.clear()  # stack traces of the export, among others
        if bits != "4":
            continue
        for place in (0, 2):  # integers and zero point: the latter may be that of others too, which have 8 bits
            wide = node.inputs[place]
            assert wide is not None and wide.const_value is not None
            kind = _FOUR_BITS[wide.dtype == ir.DataType.INT8]
            key = str(wide.name), kind
            if key not in found:
                name = f"{wide.name}" if place == 0 else f"{wide.name}.{kind.name.lower()}"
                narrow = ir.Tensor(wide.const_value.numpy().astype(kind.numpy()), dtype=kind, name=name)
                found[key] = ir.Value(name=name, shape=wide.shape, type=ir.TensorType(kind), const_value=narrow)
            node.replace_input_with(place, found[key])
    for value in [value for value in model.graph.initializers.values() if not value.uses()]:
        del model.graph.initializers[str(value.name)]
    for value in found.values():
        model.graph.register_initializer(value)


def write(model: ir.Model, path: Path, metadata: Mapping[str, str], tried: Callable[[Path], T], largest: int = LARGEST) -> T:
    """Write a model: whole, and only where it runs, or not at all.

    Args:
        model: What ``exported`` made.
        path: Where to. A second file, ``NAME-DIGITS.data``, lies beside it where ``largest`` bytes do not hold all weights.
        metadata: What its ``metadata_props`` are to be.
        tried: Is called with the file before that gets its name, and raises where it is no good.

    Returns:
        What that has returned.
    """
    model.metadata_props.update(metadata)
    model.producer_name, model.producer_version = "qdexp", version("qdexp")
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
    beside = path.with_name(f"{path.stem}-{uuid4().hex[:12]}.data") if size > largest else None
    results: list[T] = []

    def save(part: Path) -> None:
        ir.save(model, part, external_data=beside and beside.name)
        results.append(tried(part))

    try:
        files.write(path, save)
    except BaseException:
        if beside is not None:
            beside.unlink(missing_ok=True)
        raise
    return results[0]
