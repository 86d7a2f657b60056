"""The ops of torch's that a file may name: they compute from their arguments and do nothing else."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

ABSENT = object()

_SYMBOLIC: dict[str, Callable[..., Any]] = {
    "operator.mul": operator.mul,
    "operator.add": operator.add,
    "operator.sub": operator.sub,
    "operator.floordiv": operator.floordiv,
}

# By overload. Not in it: what makes random numbers, reads strides, writes, or looks at memory it is not given; nor
# batch and group norm's inner operators, which leave it to the outer ones to check sizes.
_NAMES = {
    "default": """
        _adaptive_avg_pool2d _log_softmax _softmax abs adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool2d
        addmm amax amin arange argmax argmin avg_pool1d avg_pool2d avg_pool3d baddbmm batch_norm bitwise_not bmm cat
        ceil celu channel_shuffle chunk clamp clamp_max clamp_min clone constant_pad_nd conv1d conv2d conv3d
        conv_transpose1d convolution copy cos cumsum einsum elu embedding erf exp expand expand_as expm1 flip floor
        floor_divide full full_like gather gelu glu group_norm hardsigmoid hardswish hardtanh im2col index_select
        instance_norm isfinite isinf isnan layer_norm leaky_relu lift_fresh_copy linalg_vector_norm linear log log1p
        log2 log_sigmoid logical_and logical_not logical_or logsumexp matmul max_pool1d max_pool2d
        max_pool2d_with_indices maximum mean minimum mish mm nan_to_num narrow native_layer_norm neg new_full new_ones
        new_zeros ones_like outer pad permute pixel_shuffle pixel_unshuffle prelu prod reciprocal reflection_pad2d relu
        relu6 repeat replication_pad2d reshape reshape_as roll round rsqrt scaled_dot_product_attention selu sigmoid
        sign silu sin slice_scatter softplus sort split_with_sizes sqrt square stack sum t tanh tile topk tril triu
        unsqueeze upsample_bilinear2d upsample_nearest2d zeros_like""",
    "Tensor": """
        __and__ __or__ __xor__ add bitwise_and bitwise_or bitwise_xor clamp div eq fill ge gt index le lt masked_fill
        mul ne remainder slice split sub""",
    "Tensor_Tensor": "pow",
    "Scalar": "add sub mul div fill pow eq ne lt le gt ge rsub remainder floor_divide masked_fill where",
    "Tensor_Scalar": "pow",
    "dim": "mean squeeze max min any all",
    "dims": "squeeze",
    "dim_IntList": "sum",
    "dim_int": "prod",
    "ScalarOpt_dim": "norm",
    "input": "conv_transpose2d",
    "start": "arange",
    "start_step": "arange",
    "int": "transpose softmax log_softmax select unbind unflatten sym_size",
    "using_ints": "flatten",
    "self": "where",
    "ScalarSelf": "where",
    "ScalarOther": "where",
    "vec": "_upsample_nearest_exact2d upsample_bicubic2d upsample_bilinear2d upsample_nearest1d upsample_nearest2d",
    "padding": "conv1d conv2d",
    "dtype": "to",
    "correction": "var std var_mean",
}
_OWN = "adaptive_avg_pool2d avg_pool2d batch_norm_infer concat conv2d dense_block_infer max_pool2d"

PURE_OPS = frozenset(
    [f"aten.{name}.{overload}" for overload, names in _NAMES.items() for name in names.split()]
    + [f"fastcnn.{name}.default" for name in _OWN.split()]
    + list(_SYMBOLIC)
)


def updates_statistics(name: str, args: Sequence[Any]) -> bool:
    """Whether a normalisation writes to the running statistics that it is given, which its schema does not tell.

    batch_norm(input, weight, bias, running_mean, running_var, training, ...) and instance_norm alike.
    """
    if name not in ("aten.batch_norm.default", "aten.instance_norm.default"):
        return False
    return len(args) < 6 or (args[5] is not False and (args[3] is not None or args[4] is not None))


# Operators that draw random numbers only with this argument, in this place, other than that.
_DRAWS_UNLESS = {
    "aten.dropout.default": ("train", 2, False),
    "aten.feature_dropout.default": ("train", 2, False),
    "aten.scaled_dot_product_attention.default": ("dropout_p", 4, 0.0),
}


def is_random(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call of an op draws random numbers."""
    if name in _DRAWS_UNLESS:
        key, place, quiet = _DRAWS_UNLESS[name]
        default = 0.0 if key == "dropout_p" else None
        return bool((args[place] if len(args) > place else kwargs.get(key, default)) != quiet)
    return torch.Tag.nondeterministic_seeded in getattr(find(name), "tags", ())


def find(name: str) -> Callable[..., Any]:
    """The op called "namespace.op.overload".

    Raises:
        ValueError: there is none here.
    """
    if name in _SYMBOLIC:
        return _SYMBOLIC[name]
    namespace, _, rest = name.partition(".")
    op, _, overload = rest.rpartition(".")
    try:
        found: Callable[..., Any] = getattr(getattr(getattr(torch.ops, namespace), op), overload)
    except AttributeError:
        raise ValueError(f"the operator {name!r} does not exist in torch {torch.__version__}") from None
    return found


def bind(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """One argument for each that an op takes, in order; ABSENT for those that are not given.

    Raises:
        ValueError: there is no such op, or it takes no such arguments.
    """
    op: Any = find(name)
    names = ["a", "b"] if name in _SYMBOLIC else [argument.name for argument in op._schema.arguments]
    unknown = [*map(str, range(len(names), len(args))), *(set(kwargs) - set(names[len(args) :]))]
    if unknown:
        raise ValueError(f"the operator {name!r} takes no argument {unknown[0]}")
    return [*args, *(kwargs.get(key, ABSENT) for key in names[len(args) :])]


def resolve(name: Any) -> Callable[..., Any]:
    """The op that a file names.

    Raises:
        ValueError: it is not one of PURE_OPS.
    """
    if not isinstance(name, str) or name not in PURE_OPS:
        raise ValueError(f"the operator {name!r} is none of those that a file may name")
    return find(name)
