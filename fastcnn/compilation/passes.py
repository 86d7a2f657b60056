"""What makes a graph smaller before it becomes plans; each pass changes a graph in place and keeps its results.

The order matters: see optimize.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastcnn.compilation.graph import ATEN, RESHAPE, Graph, Input, Node, Value

_PER_CHANNEL = ("conv2d", "linear")  # a scale and shift of the output's channels is one of the weights
_WITH_ACTIVATION = ("conv2d", "linear", "scale_shift", "add")

# Floats that the 1x1 layers around a depthwise one may have: bands of rows read all of them again, from cache.
_MOST_WEIGHTS = 128 * 1024


def optimize(graph: Graph) -> None:
    """Runs all passes."""
    graph.remove_unused()
    _move_reshapes_back(graph)
    _remove_reshapes(graph)
    graph.remove_unused()
    _fold_scale_shift(graph)
    _move_averages_forward(graph)
    _fold_scale_shift(graph)  # into what they were moved in front of
    _fuse_residual(graph)  # before the activation, which comes after the sum
    _fuse_activation(graph)
    _fuse_max_pool(graph)
    _nest_concats(graph)
    graph.remove_unused()
    _join_siblings(graph)
    _fuse_inverted_residuals(graph)  # last: other passes know nothing of what this makes


def _move_reshapes_back(graph: Graph) -> None:
    """Puts activations in front of the flattening that they follow, so that it meets the linear layer."""
    nodes: list[Node] = []
    flattened: dict[Value, Value] = {}  # by what a reshape returns, what it takes
    for node in graph.nodes:
        nodes.append(node)
        if node.op == "activation" and node.inputs[0] in flattened:
            source, target = flattened[node.inputs[0]], node.output
            node.inputs = [source]
            node.outputs = [Value(f"{target.name}:image", source.shape)]
            node = Node(RESHAPE, [node.output], [target])
            nodes.append(node)
        if node.op == RESHAPE:
            flattened[node.output] = node.inputs[0]
    graph.nodes = nodes


def _remove_reshapes(graph: Graph) -> None:
    """Lets steps of plans read through a reshape, or write what it would return; what is left becomes torch's.

    [N, C, 1, 1] and [N, C] lie alike. A linear layer behind the flattening of an image reads the image as it lies, in
    the order h, w, c, with the weight's columns in that order.
    """
    for node in [n for n in graph.nodes if n.op == RESHAPE]:
        source, target = node.inputs[0], node.output
        alike = source.height * source.width == 1 and target.height * target.width == 1
        for user in graph.users().get(target, []):
            if user.op == "linear" and len(source.sizes) == 3:
                user.constants["weight"] = user.constants["weight"][:, _nhwc_columns(source)]
            elif user.op == ATEN or not alike:
                continue
            user.inputs = [source if value is target else value for value in user.inputs]
    users, producers = graph.users(), graph.producers()
    for node in [n for n in graph.nodes if n.op == RESHAPE]:
        source, producer = node.inputs[0], producers.get(node.inputs[0])
        others = [user for user in users[source] if user is not node]
        if source.sizes != (node.output.channels, 1, 1) or producer is None or source in graph.outputs:
            continue
        if not {ATEN, RESHAPE} & {producer.op, *(user.op for user in others)}:
            producer.outputs = [node.output]
            graph.nodes.remove(node)
            graph.replace(source, node.output)
    graph.nodes = [part for node in graph.nodes for part in (_reshape_by_torch(node) if node.op == RESHAPE else [node])]


def _reshape_by_torch(node: Node) -> list[Node]:
    """A reshape as torch's operators; the batch is asked for, as -1 would not tell it of no elements."""
    source, target = node.inputs[0], node.output
    batch = Value(f"{target.name}:batch", None)
    size = {"op": "aten.sym_size.int", "args": [Input(0), 0], "kwargs": {}, "many": False}
    reshape = {"op": "aten.reshape.default", "args": [Input(0), [Input(1), *target.sizes]], "kwargs": {}, "many": False}
    return [Node(ATEN, [source], [batch], size), Node(ATEN, [source, batch], [target], reshape)]


def _nhwc_columns(image: Value) -> Tensor:
    """Where a flattened image, c, h, w, holds what lies at each place in the order h, w, c."""
    return torch.arange(image.channels * image.height * image.width).reshape(image.sizes).permute(1, 2, 0).flatten()


def _only_user(graph: Graph, users: dict[Value, list[Node]], value: Value, user: Node) -> bool:
    return users.get(value, []) == [user] and value not in graph.outputs


def _has(node: Node, **attributes: Any) -> bool:
    return all(node.attributes[name] == value for name, value in attributes.items())


def _fold_scale_shift(graph: Graph) -> None:
    """Multiplies a batch norm into the weights of the layer before it, in float64, where nothing else reads that."""
    users, producers = graph.users(), graph.producers()
    for node in list(graph.nodes):
        layer = producers.get(node.inputs[0]) if node.op == "scale_shift" else None
        if layer is None or layer.op not in _PER_CHANNEL or layer.attributes["activation"] != "none":
            continue
        if not _only_user(graph, users, layer.output, node):
            continue
        scale, shift = node.constants["scale"].double(), node.constants["shift"].double()
        weight, bias = layer.constants["weight"], layer.constants.get("bias")
        layer.constants = {
            "weight": (weight.double() * scale.reshape(-1, *[1] * (weight.dim() - 1))).to(weight.dtype),
            "bias": shift if bias is None else shift + bias.double() * scale,
        }
        layer.attributes["activation"] = node.attributes["activation"]
        layer.outputs = node.outputs
        producers[layer.output] = layer
        graph.nodes.remove(node)


def _move_averages_forward(graph: Graph) -> None:
    """Averages windows before the 1x1 convolutions that they follow, which then have fewer pixels: both are linear.

    DenseNet's transitions are such.
    """
    for pool in [node for node in graph.nodes if node.op in ("avg_pool2d", "adaptive_avg_pool2d")]:
        while (conv := _averaged(graph, pool)) is not None:
            image, pooled = conv.inputs[0], pool.output
            average = Value(f"{pooled.name}:average", (image.channels, *pooled.sizes[1:]))
            pool.inputs, pool.outputs = [image], [average]
            after = Node("conv2d", [average], [pooled], conv.attributes, conv.constants)
            places = {conv: pool, pool: after}
            graph.nodes = [places.get(node, node) for node in graph.nodes]


def _averaged(graph: Graph, pool: Node) -> Node | None:
    """The 1x1 convolution whose result is averaged to fewer pixels, and by nothing else, with weights of sum one."""
    conv, pooled = graph.producers().get(pool.inputs[0]), pool.output
    if conv is None or conv.op != "conv2d" or not _only_user(graph, graph.users(), conv.output, pool):
        return None
    if len(conv.inputs) == 2 or conv.constants["weight"].shape[2:] != (1, 1):
        return None
    if not _has(conv, stride=[1, 1], padding=[0, 0], activation="none"):
        return None
    if pool.attributes.get("divisor") or any(pool.attributes.get("padding", [])):
        return None
    if any(k > s for k, s in zip(pool.attributes.get("kernel", []), pool.attributes.get("stride", []), strict=True)):
        return None  # windows that overlap may add more than the convolution saves
    return conv if pooled.height * pooled.width < conv.output.height * conv.output.width else None


def _fuse_residual(graph: Graph) -> None:
    """Lets a convolution add what is added to its result; of two convolutions, the one that runs later."""
    users, producers = graph.users(), graph.producers()
    for position, node in enumerate(graph.nodes):
        if node.op != "add" or node.inputs[0] is node.inputs[1]:
            continue
        convs = []
        for value in node.inputs:
            conv = producers.get(value)
            if conv is None or conv.op != "conv2d" or len(conv.inputs) == 2 or conv.attributes["activation"] != "none":
                continue
            if _only_user(graph, users, value, node):
                convs.append(conv)
        if not convs:
            continue
        conv = max(convs, key=graph.nodes.index)
        (residual,) = (value for value in node.inputs if value is not conv.output)
        # It takes the sum's place: there the residual has been computed, and only the sum has read the convolution.
        attributes = {**conv.attributes, "activation": node.attributes["activation"]}
        fused = Node("conv2d", [conv.inputs[0], residual], node.outputs, attributes, conv.constants)
        users[conv.inputs[0]] = [fused if user is conv else user for user in users[conv.inputs[0]]]
        users[residual] = [fused if user is node else user for user in users[residual]]
        graph.nodes[position] = producers[fused.output] = fused
        conv.op = "dead"
    graph.nodes = [node for node in graph.nodes if node.op != "dead"]


def _fuse_activation(graph: Graph) -> None:
    """Lets the step before an activation apply it, where nothing else reads what comes before it."""
    users, producers = graph.users(), graph.producers()
    for node in [n for n in graph.nodes if n.op == "activation"]:
        layer = producers.get(node.inputs[0])
        if layer is None or layer.op not in _WITH_ACTIVATION or layer.attributes["activation"] != "none":
            continue
        if _only_user(graph, users, layer.output, node):
            layer.attributes["activation"] = node.attributes["activation"]
            layer.outputs = node.outputs
            producers[layer.output] = layer
            graph.nodes.remove(node)


def _fuse_max_pool(graph: Graph) -> None:
    """Lets a convolution that Winograd's algorithm may compute, in tiles of 2 x 2 or 4 x 4, give a window's maximum."""
    users, producers = graph.users(), graph.producers()
    for pool in [node for node in graph.nodes if node.op == "max_pool2d"]:
        conv = producers.get(pool.inputs[0])
        if conv is None or conv.op != "conv2d" or len(conv.inputs) == 2 or len(conv.outputs) == 2:
            continue
        if not _only_user(graph, users, conv.output, pool):
            continue
        if not _has(pool, kernel=[2, 2], stride=[2, 2], padding=[0, 0], dilation=[1, 1]):
            continue
        if pool.output.sizes[1:] != (conv.output.height // 2, conv.output.width // 2):  # rounded up
            continue
        if conv.constants["weight"].shape[2:] not in ((3, 3), (5, 5)):
            continue
        if not _has(conv, stride=[1, 1], dilation=[1, 1], groups=1):
            continue
        conv.outputs = [pool.output, conv.output]
        producers[pool.output] = conv
        graph.nodes.remove(pool)


def _join_siblings(graph: Graph) -> None:
    """Makes convolutions of one input and one form a single one, whose channels the next ones read in part.

    Of an Inception block that is the 1x1 layers in front of its 3x3 and 5x5 ones. What goes into a concat stays apart,
    as it is written there; so does what others than convolutions read, and graphs that are more than one plan.
    """
    if any(node.op == ATEN for node in graph.nodes):
        return
    users = graph.users()
    siblings: dict[tuple[Any, ...], list[Node]] = {}
    for node in graph.nodes:
        alone = node.op == "conv2d" and len(node.inputs) == len(node.outputs) == 1 and node.output not in graph.outputs
        if not alone or node.attributes["groups"] > 1:
            continue
        if all(user.op == "conv2d" and user.inputs[0] is node.output for user in users[node.output]):
            form = repr(sorted(node.attributes.items())), node.constants["weight"].shape[1:], "bias" in node.constants
            siblings.setdefault((node.inputs[0], *form), []).append(node)
    for alike in siblings.values():
        if len(alike) > 1:
            _join(graph, alike)


def _join(graph: Graph, convs: list[Node]) -> None:
    """Puts one convolution and a split in the place of the first of several."""
    first = convs[0]
    names = "+".join(conv.output.name for conv in convs)
    joined = Value(names, (sum(conv.output.channels for conv in convs), *first.output.sizes[1:]))
    constants = {name: torch.cat([conv.constants[name] for conv in convs]) for name in first.constants}
    nodes = [
        Node("conv2d", list(first.inputs), [joined], first.attributes, constants),
        Node("split", [joined], [conv.output for conv in convs]),
    ]
    graph.nodes = [new for old in graph.nodes for new in (nodes if old is first else [] if old in convs else [old])]


def _fuse_inverted_residuals(graph: Graph) -> None:
    """Makes a depthwise layer and the 1x1 layers around it one step, where nothing else reads what is between them."""
    for middle in [node for node in graph.nodes if _is_depthwise(node)]:
        users, producer = graph.users(), graph.producers().get(middle.inputs[0])
        before = producer if producer is not None and _is_1x1(producer) and len(producer.inputs) == 1 else None
        if before is not None and not _only_user(graph, users, before.output, middle):
            before = None
        reader = next(iter(users.get(middle.output, [])), None)
        after = reader if reader is not None and _is_1x1(reader) and reader.inputs[0] is middle.output else None
        if after is not None and not _only_user(graph, users, middle.output, after):
            after = None
        layers = {"expand_": before, "": middle, "project_": after}
        weights = sum(node.constants["weight"].numel() for node in (before, after) if node is not None)
        if (before or after) is None or weights > _MOST_WEIGHTS:
            continue
        fused = Node("inverted_residual", [(before or middle).inputs[0]], (after or middle).outputs)
        fused.inputs += after.inputs[1:] if after is not None else []
        fused.attributes = {key: middle.attributes[key] for key in ("stride", "padding", "dilation")}
        for prefix, node in layers.items():
            fused.attributes[f"{prefix}activation"] = "none" if node is None else node.attributes["activation"]
            if node is not None:
                fused.constants |= {f"{prefix}{name}": tensor for name, tensor in node.constants.items()}
        gone = [before, middle] if after is not None else [before]
        graph.nodes = [fused if node is (after or middle) else node for node in graph.nodes if node not in gone]


def _is_1x1(node: Node) -> bool:
    if node.op != "conv2d" or len(node.outputs) > 1 or node.constants["weight"].shape[2:] != (1, 1):
        return False
    return _has(node, stride=[1, 1], padding=[0, 0], groups=1)


def _is_depthwise(node: Node) -> bool:
    """A layer of one input channel for each output, whose windows reach into the image."""
    if node.op != "conv2d" or len(node.inputs) > 1 or len(node.outputs) > 1:
        return False
    weight = node.constants["weight"]
    if not node.attributes["groups"] == weight.shape[0] == node.inputs[0].channels > 1:
        return False
    extents = [d * (k - 1) + 1 for d, k in zip(node.attributes["dilation"], weight.shape[2:], strict=True)]
    return all(p < extent for p, extent in zip(node.attributes["padding"], extents, strict=True))


def _nest_concats(graph: Graph) -> None:
    """Makes concat(a, b, c) of an earlier concat(a, b) concat(that, c): then all of them can share one buffer."""
    earlier: dict[tuple[Value, ...], Value] = {}
    for node in graph.nodes:
        if node.op != "concat":
            continue
        parts = tuple(node.inputs)
        for length in range(len(parts), 1, -1):
            if parts[:length] in earlier:
                node.inputs = [earlier[parts[:length]], *parts[length:]]
                break
        earlier[parts] = node.output
    users = graph.users()
    for node in [n for n in graph.nodes if n.op == "concat" and len(n.inputs) == 1 and n.output not in graph.outputs]:
        # Torch's operators may give views of what they read, and ask for its shape, which may be another one here.
        if all(user.op != ATEN for user in users.get(node.output, [])):
            graph.replace(node.output, node.inputs[0])
