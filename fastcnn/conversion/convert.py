"""convert and revert."""

from __future__ import annotations

from typing import Any

from torch import nn

from fastcnn.conversion import layers
from fastcnn.conversion.plan import Plan, plan


def convert(model: nn.Module, example: Any = None) -> nn.Module:
    """Makes a model of torch's layers run on fastcnn's kernels, in place.

    torch.nn's Conv2d, MaxPool2d, AvgPool2d, AdaptiveAvgPool2d, BatchNorm1d and BatchNorm2d become fastcnn's, anywhere
    in the model, and so do subclasses that leave torch's forward alone; a batch norm followed by ReLU, with or without
    a residual added between them, runs as one op, in a Sequential as in a forward that torch.fx can trace. Modules,
    parameters, buffers, hooks, optimizers, flags and the state_dict stay what they are: only classes change, and the
    memory format of convolution weights. The model trains, copies, pickles, compiles and exports as before.

    Converting twice converts what was added since. What stays torch's, and why: fastcnn.conversion.plan.plan(model).

    Args:
        model: any torch.nn.Module.
        example: what to run the model on, a Tensor, or a tuple or dict of arguments. Each layer is timed on what it
            gets there, with its backward if the model is in training, and stays torch's where that is faster by more
            than 5 %, as fastcnn.explanation.measure_layers times it: by itself, with channels_last weights on both
            sides, near ties five times. Default: nothing is measured, and a rule chooses.

    Returns:
        The model itself.

    Raises:
        TypeError: model is no torch.nn.Module.
        Exception: what the model raises on the example, and what fastcnn.explanation.measure_layers raises. What this
            call has converted is reverted then.

    Numerics: those of the ops; float32 results differ from torch's in rounding.
    """
    decided = plan(model)
    kept = {module: done.kept for module in model.modules() if (done := layers.conversion(module)) and done.kept}
    if example is not None:
        for module in kept:
            layers.forget_kept(module)
        decided = plan(model)
    new = [module for module in model.modules() if layers.conversion(module) is None]
    try:
        carry_out(decided, model)
        if example is not None:
            from fastcnn.conversion.measured import keep_faster

            keep_faster(model, example)
    except BaseException:
        for module in new:
            layers.undo(module)
        for module, reason in kept.items():
            layers.keep(module, reason)
        raise
    if example is None:
        times = "convert(model, example) times each layer, and leaves torch's where that is faster"
        print(f"fastcnn.convert: a rule chooses the layers; {times}")
    return model


def carry_out(decided: Plan, model: nn.Module) -> None:
    """Changes the model, in place, as a plan of it says."""
    modules = dict(model.named_modules())
    for name, cls in decided.classes.items():
        layers.change(modules[name], cls, decided.recipes.get(name))
    for name, module in modules.items():
        done = layers.conversion(module)
        recipe = decided.recipes.get(name)
        if done is not None and done.recipe != recipe:
            done.recipe = recipe
    layers.weights_to_channels_last(model)


def revert(model: nn.Module) -> nn.Module:
    """Undoes convert, in place: classes, forwards, attributes and the weights' memory format are what they were.

    Values are not touched, so it may be done after training. Copies of a converted model can be reverted too.

    Args:
        model: a model, converted or not.

    Returns:
        The model itself.

    Raises:
        TypeError: model is no torch.nn.Module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"fastcnn.revert: expected a torch.nn.Module, but got {type(model).__name__}")
    for module in model.modules():
        layers.undo(module)
    return model
