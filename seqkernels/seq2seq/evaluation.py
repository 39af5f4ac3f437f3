"""A model in evaluation mode while other threads use the same model in training mode."""

from types import MethodType

from torch import nn


def evaluated(model: nn.Module) -> nn.Module:
    """The model in evaluation mode, without a change to any of its modules.

    A model of which no part is in training mode is returned as it is. Otherwise the result is made
    of copies of its modules that share parameters, buffers, hooks and every other attribute with
    them. What a copy assigns to itself is forgotten with it, and a module that was compiled by
    itself runs eagerly, for its compiled call leads to the original.

    Args:
        model: any module; its parts may be in different modes.
    """
    modules = list(model.modules())
    if not any(module.training for module in modules):
        return model
    copies = {module: object.__new__(type(module)) for module in modules}
    for module, copy in copies.items():
        own = dict(module.__dict__)
        for name, value in own.items():
            # Such as a forward that was replaced on the instance.
            if isinstance(value, MethodType) and value.__self__ is module:
                own[name] = MethodType(value.__func__, copy)
        own.pop("_compiled_call_impl", None)
        own["training"] = False
        own["_modules"] = {
            name: None if part is None else copies[_uncompiled(part)]
            for name, part in module._modules.items()
        }
        copy.__dict__.update(own)
    return copies[model]


def _uncompiled(module: nn.Module) -> nn.Module:
    """The module inside the wrapper that `torch.compile` puts around one."""
    return module._modules.get("_orig_mod", module)
