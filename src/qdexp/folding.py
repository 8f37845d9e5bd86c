"""Weights that a network computes anew at each call from others, computed once.

    weight norm      w = g v / |v|                  torch.nn.utils.weight_norm (by hook) or torch.nn.utils.parametrizations
    spectral norm    w = v / sigma(v)               likewise
    pruning          w = mask v                     torch.nn.utils.prune
    any other        w = f(v_0, v_1, ...)           torch.nn.utils.parametrize

In eval mode all of these are constants. Folded, a layer has one plain ``weight`` again, and computes the same numbers with it.
"""

import torch
from torch import nn
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm, SpectralNormLoadStateDictPreHook
from torch.nn.utils.weight_norm import WeightNorm


@torch.no_grad()
def fold(network: nn.Module) -> None:
    """Give ``network``, which is set to eval mode, plain weights in place, of the values that they have now.

    What a parametrization of the user's computes differently from call to call is left as it is. Networks that hold attention
    of torch's own turn its fast path off in this process: in eval mode that reads the weights of layers without calling them.
    """
    network.eval()
    if any(isinstance(module, nn.MultiheadAttention) for module in network.modules()):
        torch.backends.mha.set_fastpath_enabled(False)
    for module in list(network.modules()):
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, WeightNorm):
                remove_weight_norm(module, hook.name)
            elif isinstance(hook, SpectralNorm):
                remove_spectral_norm(module, hook.name)
                _forget_loading(module)
            elif isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, hook._tensor_name)
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                if _is_constant(module, name):
                    parametrize.remove_parametrizations(module, name, leave_parametrized=True)
                    value = getattr(module, name)
                    delattr(module, name)  # it may have become a buffer
                    module.register_parameter(name, nn.Parameter(value.detach(), requires_grad=False))


def _forget_loading(module: nn.Module) -> None:
    """Remove the hook that torch (2.14) leaves behind after spectral norm, which looks for its tensors in a state dict."""
    for key, hook in list(module._load_state_dict_pre_hooks.items()):
        if isinstance(getattr(hook, "hook", hook), SpectralNormLoadStateDictPreHook):
            del module._load_state_dict_pre_hooks[key]


def _is_constant(module: nn.Module, name: str) -> bool:
    first, second = getattr(module, name), getattr(module, name)
    return first.is_meta or torch.equal(first, second)
