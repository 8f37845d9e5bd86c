"""Networks from a config: the class named by ``model.network._target_``, filled from a safetensors file.

A class may define ``adapt_weights(weights) -> weights``: how its own weights follow from those of the file, which have the same
names and shapes. A checkpoint holds the network's own, so loading one does not call it.
"""

import math
from pathlib import Path

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from qdexp.config import Model
from qdexp.errors import UserError
from qdexp.files import sha256


def _problem(model: Model, what: str, mend: str) -> UserError:
    return UserError(f"model.weights={model.weights}: {what}; {mend}")


def check_weights(model: Model) -> None:
    """Raises UserError where the weights are missing or torn, or differ from a ``.sha256`` file beside them."""
    path = Path(model.weights)
    if not path.is_file():
        raise _problem(model, "no such file", "give the path of a safetensors file")
    try:
        with safe_open(path, framework="pt") as file:
            file.keys()
    except (SafetensorError, OSError) as error:
        raise _problem(model, f"not a whole safetensors file ({error})", "fetch or export it again") from error
    stated = path.with_name(path.name + ".sha256")
    if stated.is_file() and stated.read_text().split()[:1] != [sha256(path)]:
        raise _problem(model, f"its digest is not the one in {stated.name}", "the file is damaged or not the one meant")


def check_fit(model: Model) -> None:
    """Raises UserError where architecture and weights differ in a name or a shape."""
    wanted = {name: tuple(value.shape) for name, value in skeleton(model).state_dict().items()}
    with safe_open(model.weights, framework="pt") as file:
        found = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            difference = f"{name} is {found.get(name, 'missing')}, in model.network {wanted.get(name, 'missing')}"
            raise _problem(model, f"does not fit model.network ({difference})", "change one of the two")


def build(model: Model, channels_last: bool) -> torch.nn.Module:
    """The full-precision network in eval mode, without gradients. UserError where architecture and weights do not fit."""
    check_weights(model)
    check_fit(model)
    network = _architecture(model)
    adapt = getattr(network, "adapt_weights", dict)
    network.load_state_dict(adapt(load_file(model.weights)))
    network.eval().requires_grad_(False)
    return network.to(memory_format=torch.channels_last) if channels_last else network


def _architecture(model: Model) -> torch.nn.Module:
    try:
        network: torch.nn.Module = instantiate(model.network, _convert_="all")
    except InstantiationException as error:
        raise UserError(f"model.network: {' '.join(str(error).split())}") from error
    return network


def skeleton(model: Model) -> torch.nn.Module:
    """The architecture without memory; with it where its constructor computes with its parameters."""
    try:
        with torch.device("meta"):
            return _architecture(model)
    except UserError:
        return _architecture(model)


def layer_names(model: Model) -> list[str]:
    """The names of the convolutions and linear layers."""
    network = skeleton(model)
    kinds = (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Linear)
    return [name for name, module in network.named_modules() if isinstance(module, kinds)]


def parameters(model: Model) -> int:
    """How many numbers the weights file holds."""
    with safe_open(model.weights, framework="pt") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118 - no mapping
