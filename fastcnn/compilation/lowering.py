"""What each op of an exported program becomes in a plan; an op without an entry, or not covered, stays torch's.

An entry gets the builder, the op's arguments by name (values are graph.Value, weights are tensors) and the output, and
returns the value that stands for the output, or None where plans cannot do it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from fastcnn.compilation.graph import Value


class Builder(Protocol):
    """Appends nodes."""

    def add(
        self,
        op: str,
        inputs: Sequence[Value],
        output: Value,
        constants: dict[str, Tensor] | None = None,
        **attributes: Any,
    ) -> Value:
        """Appends a step of a plan and returns its output."""

    def intermediate(self, name: str, shape: tuple[int, ...]) -> Value:
        """A value that the exported program does not name."""


Arguments = dict[str, Any]
Lowering = Callable[[Builder, Arguments, Value], Value | None]


def pair(value: int | Sequence[int]) -> list[int]:
    """One int or one or two of them as two."""
    values = [value] if isinstance(value, int) else list(value)
    return values * 2 if len(values) == 1 else values


def is_image(value: Any) -> bool:
    """Whether it is a value of a plan with rows and columns."""
    return isinstance(value, Value) and value.shape is not None and len(value.shape) == 3


def is_plain(value: Any) -> bool:
    """Whether plans can hold it."""
    return isinstance(value, Value) and value.shape is not None


def _is_weight(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dtype == torch.float32


def _identity(build: Builder, given: Arguments, output: Value) -> Value | None:
    source: Any = given["self"] if "self" in given else given["input"]
    return source if isinstance(source, Value) else None


def _dropout(build: Builder, given: Arguments, output: Value) -> Value | None:
    return None if given["train"] else _identity(build, given, output)


def _conv2d(build: Builder, given: Arguments, output: Value) -> Value | None:
    weight, bias, padding = given["weight"], given["bias"], given["padding"]
    if not (is_image(given["input"]) and is_image(output) and _is_weight(weight)):
        return None
    if not (bias is None or _is_weight(bias)):
        return None
    dilation = pair(given["dilation"])
    if padding == "valid":
        padding = [0, 0]
    elif padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
        if any(t % 2 for t in total):
            return None
        padding = [t // 2 for t in total]
    constants = {"weight": weight} | ({} if bias is None else {"bias": bias})
    activation = given.get("activation")
    result = build.intermediate(output.name, output.sizes) if activation else output
    build.add(
        "conv2d",
        [given["input"]],
        result,
        constants,
        activation="none",
        stride=pair(given["stride"]),
        padding=pair(padding),
        dilation=dilation,
        groups=given["groups"],
    )
    return build.add("activation", [result], output, activation=activation) if activation else result


def _linear(build: Builder, given: Arguments, output: Value) -> Value | None:
    source, weight, bias = given["input"], given["weight"], given["bias"]
    if not (is_plain(source) and len(source.sizes) == 1 and _is_weight(weight) and is_plain(output)):
        return None
    if not (bias is None or (_is_weight(bias) and bias.shape == weight.shape[:1])):
        return None
    constants = {"weight": weight} | ({} if bias is None else {"bias": bias})
    return build.add("linear", [source], output, constants, activation="none")


def _addmm(build: Builder, given: Arguments, output: Value) -> Value | None:
    weight = given["mat2"]
    if not (_is_weight(weight) and _is_weight(given["self"]) and given["beta"] == 1 and given["alpha"] == 1):
        return None
    if given["self"].shape != weight.shape[1:]:
        return None
    return _linear(build, {"input": given["mat1"], "weight": weight.t(), "bias": given["self"]}, output)


def scale_and_shift(
    mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> dict[str, Tensor]:
    """Batch norm in evaluation as output = input * scale + shift, in float64."""
    scale = (var.double() + eps).rsqrt()
    if weight is not None:
        scale = scale * weight.double()
    shift = -mean.double() * scale
    return {"scale": scale, "shift": shift if bias is None else shift + bias.double()}


def _batch_norm(build: Builder, given: Arguments, output: Value) -> Value | None:
    names = ("running_mean", "running_var") if "running_mean" in given else ("mean", "var")
    mean, var = given[names[0]], given[names[1]]
    weight, bias, residual = given["weight"], given["bias"], given.get("residual")
    if not (is_plain(given["input"]) and is_plain(output)) or given.get("training"):
        return None
    if not (_is_weight(mean) and _is_weight(var) and all(t is None or _is_weight(t) for t in (weight, bias))):
        return None
    if residual is not None and not is_plain(residual):
        return None
    relu = bool(given.get("relu"))
    shape, last = output.sizes, residual is None and not relu
    result = output if last else build.intermediate(output.name, shape)
    constants = scale_and_shift(mean, var, weight, bias, given["eps"])
    build.add("scale_shift", [given["input"]], result, constants, activation="none")
    if residual is not None:
        added = build.intermediate(output.name, shape) if relu else output
        result = build.add("add", [result, residual], added, activation="none")
    return build.add("activation", [result], output, activation="relu") if relu else result


def _dense_block(build: Builder, given: Arguments, output: Value) -> Value | None:
    features, statistics, parameters = given["input"], given["statistics"], given["parameters"]
    if not is_image(features) or not all(_is_weight(t) for t in [*statistics, *parameters]):
        return None
    height, width = features.sizes[1:]
    for layer, eps in enumerate(given["eps"]):
        mean, var = statistics[2 * layer : 2 * layer + 2]
        norm_weight, norm_bias, weight, bias = parameters[4 * layer : 4 * layer + 4]

        def value(channels: int) -> Value:
            return build.intermediate(output.name, (channels, height, width))

        constants = scale_and_shift(mean, var, norm_weight, norm_bias, eps)
        normed = build.add("scale_shift", [features], value(features.channels), constants, activation="relu")
        constants = {"weight": weight, "bias": bias}
        ones = {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 1}
        new = build.add("conv2d", [normed], value(weight.shape[0]), constants, activation="none", **ones)
        features = build.add("concat", [features, new], value(features.channels + new.channels))
    output = features
    return output


def _windows(given: Arguments) -> dict[str, Any]:
    return {
        "kernel": pair(given["kernel_size"]),
        "stride": pair(given["stride"] or given["kernel_size"]),
        "padding": pair(given["padding"]),
        "ceil_mode": int(given["ceil_mode"]),
    }


def _max_pool2d(build: Builder, given: Arguments, output: Value) -> Value | None:
    source: Any = given["self"] if "self" in given else given["input"]
    if not (is_image(source) and is_image(output)):
        return None
    return build.add(
        "max_pool2d",
        [source],
        output,
        **_windows(given),
        dilation=pair(given["dilation"]),
    )


def _avg_pool2d(build: Builder, given: Arguments, output: Value) -> Value | None:
    source: Any = given["self"] if "self" in given else given["input"]
    if not (is_image(source) and is_image(output)):
        return None
    return build.add(
        "avg_pool2d",
        [source],
        output,
        **_windows(given),
        count_include_pad=int(given["count_include_pad"]),
        divisor=given["divisor_override"] or 0,
    )


def _adaptive_avg_pool2d(build: Builder, given: Arguments, output: Value) -> Value | None:
    source: Any = given["self"] if "self" in given else given["input"]
    if not (is_image(source) and is_image(output)) or 0 in source.sizes:
        return None
    return build.add("adaptive_avg_pool2d", [source], output)


def _mean(build: Builder, given: Arguments, output: Value) -> Value | None:
    source, dims = given["self"], given["dim"]
    if not (is_image(source) and is_plain(output) and dims) or given["dtype"] is not None or 0 in source.sizes:
        return None
    if sorted(d % 4 for d in dims) != [2, 3]:
        return None
    if given["keepdim"]:
        return build.add("adaptive_avg_pool2d", [source], output)
    pooled = build.intermediate(output.name, (source.channels, 1, 1))
    build.add("adaptive_avg_pool2d", [source], pooled)
    return build.add("reshape", [pooled], output)


def _add(build: Builder, given: Arguments, output: Value) -> Value | None:
    left, right = given["self"], given["other"]
    if not (is_plain(left) and is_plain(right) and left.shape == right.shape == output.shape):
        return None
    return build.add("add", [left, right], output, activation="none") if given["alpha"] == 1 else None


def _multiply(build: Builder, given: Arguments, output: Value) -> Value | None:
    image, factors = given["self"], given["other"]
    if is_image(image) and image.sizes[1:] == (1, 1):
        image, factors = factors, image
    if not (is_image(image) and is_image(factors) and factors.sizes == (image.channels, 1, 1)):
        return None
    return build.add("scale_images", [image, factors], output) if image.shape == output.shape else None


def _activation(name: str, **arguments: float) -> Lowering:
    def lower(build: Builder, given: Arguments, output: Value) -> Value | None:
        source: Any = given["self"] if "self" in given else given["input"]
        if any(given[key] != value for key, value in arguments.items()):
            return None
        return build.add("activation", [source], output, activation=name) if is_plain(source) else None

    return lower


def _concat(build: Builder, given: Arguments, output: Value) -> Value | None:
    parts = given["tensors"]
    if not (is_plain(output) and all(is_plain(part) for part in parts)):
        return None
    if given["dim"] % (1 + len(output.sizes)) != 1 or any(len(p.sizes) != len(output.sizes) for p in parts):
        return None
    return parts[0] if len(parts) == 1 else build.add("concat", parts, output)


def _reshape(build: Builder, given: Arguments, output: Value) -> Value | None:
    source = given["self"]
    if not (is_plain(source) and is_plain(output)):
        return None
    if source.sizes == output.sizes:
        return _identity(build, given, output)
    if len(output.sizes) == 1 or (len(source.sizes) == 1 and output.sizes == (*source.sizes, 1, 1)):
        return build.add("reshape", [source], output)
    return None


LOWERINGS: dict[str, Lowering] = {
    "aten.conv2d.default": _conv2d,
    "aten.conv2d.padding": _conv2d,
    "fastcnn.conv2d.default": _conv2d,
    "aten.linear.default": _linear,
    "aten.addmm.default": _addmm,
    "aten.batch_norm.default": _batch_norm,
    "aten._native_batch_norm_legit_no_training.default": _batch_norm,
    "fastcnn.batch_norm_infer.default": _batch_norm,
    "fastcnn.dense_block_infer.default": _dense_block,
    "aten.max_pool2d.default": _max_pool2d,
    "aten.max_pool2d_with_indices.default": _max_pool2d,
    "fastcnn.max_pool2d.default": _max_pool2d,
    "aten.avg_pool2d.default": _avg_pool2d,
    "fastcnn.avg_pool2d.default": _avg_pool2d,
    "aten.adaptive_avg_pool2d.default": _adaptive_avg_pool2d,
    "aten._adaptive_avg_pool2d.default": _adaptive_avg_pool2d,
    "fastcnn.adaptive_avg_pool2d.default": _adaptive_avg_pool2d,
    "aten.mean.dim": _mean,
    "aten.add.Tensor": _add,
    "aten.relu.default": _activation("relu"),
    "aten.sigmoid.default": _activation("sigmoid"),
    "aten.relu6.default": _activation("relu6"),
    "aten.hardtanh.default": _activation("relu6", min_val=0, max_val=6),
    "aten.clamp.default": _activation("relu6", min=0, max=6),
    "aten.hardsigmoid.default": _activation("hard_sigmoid"),
    "aten.hardswish.default": _activation("hard_swish"),
    "aten.silu.default": _activation("silu"),
    "aten.mul.Tensor": _multiply,
    "aten.cat.default": _concat,
    "fastcnn.concat.default": _concat,
    "aten.dropout.default": _dropout,
    "aten.feature_dropout.default": _dropout,
    "aten.flatten.using_ints": _reshape,
    "aten.view.default": _reshape,
    "aten.reshape.default": _reshape,
    "aten.squeeze.dims": _reshape,
    **{
        f"aten.{name}.default": _identity
        for name in ("contiguous", "clone", "detach", "detach_", "alias", "lift_fresh_copy")
    },
}
