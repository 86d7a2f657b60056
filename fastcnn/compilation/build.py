"""From a graph to a program: which nodes share a plan, and which values pass between the segments."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastcnn.compilation import spec
from fastcnn.compilation.export import export
from fastcnn.compilation.graph import ATEN, Graph, Input, Node, Value, map_leaves
from fastcnn.compilation.passes import optimize
from fastcnn.compilation.plan import PlanBuilder
from fastcnn.compilation.spec import Program


def build(model: nn.Module, examples: Sequence[Tensor], *, dynamic: bool = True) -> Program:
    """The program of a model; arguments and errors as export.export's."""
    graph = export(model, examples, dynamic=dynamic)
    optimize(graph)
    return _Writer(graph).write()


def _segments(graph: Graph) -> list[list[Node]]:
    """Plans as long as possible: all of torch's ops that can run, one by one, then all steps that can, and again."""
    ready = set(graph.inputs)
    waiting = graph.nodes
    segments: list[list[Node]] = []
    while waiting:
        before = len(waiting)
        for aten in (True, False):
            taken, left = [], []
            for node in waiting:
                if (node.op == ATEN) == aten and ready.issuperset(node.inputs):
                    taken.append(node)
                    ready.update(node.outputs)
                else:
                    left.append(node)
            waiting = left
            if taken:
                segments += [[node] for node in taken] if aten else [taken]
        if len(waiting) == before:
            raise AssertionError(f"fastcnn.compile: nothing computes what {waiting[0].output.name} is made of")
    return segments


class _Writer:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.slots = {value: index for index, value in enumerate(graph.inputs)}
        self.constants: list[Tensor] = []
        self.numbers: dict[tuple[int, torch.dtype], int] = {}  # by id of the tensor in the graph
        self.kept: list[Tensor] = []  # these tensors, so that no other gets the id

    def write(self) -> Program:
        graph = self.graph
        segments = _segments(graph)
        needed: list[set[Value]] = [set() for _ in segments]  # by segment: what the later ones and the caller read
        reads = set(graph.outputs)
        for index in reversed(range(len(segments))):
            needed[index] = reads & {value for node in segments[index] for value in node.outputs}
            reads |= {value for node in segments[index] for value in node.inputs}
        written = [self._segment(nodes, wanted) for nodes, wanted in zip(segments, needed, strict=True)]
        document = {
            "dtype": spec.name_of(spec.DTYPE),
            "inputs": graph.signature,
            "batch": graph.batch,
            "segments": written,
            "outputs": [self._slot(value) for value in graph.outputs],
            "slots": len(self.slots),
            "structure": graph.structure,
        }
        # Through JSON, so that it is the same whether it has been in a file or not.
        program = Program(json.loads(json.dumps(document)), self.constants)
        return program

    def _segment(self, nodes: list[Node], wanted: set[Value]) -> dict[str, Any]:
        if nodes[0].op == ATEN:
            return self._op(nodes[0])
        outputs = [node.output for node in nodes if node.output in wanted]
        builder = PlanBuilder(nodes, outputs, lambda tensor: self._constant(tensor, spec.DTYPE))
        plan = builder.build()
        inputs = [self._slot(value) for value in builder.inputs]
        return {"plan": plan, "inputs": inputs, "outputs": [self._slot(value) for value in outputs]}

    def _op(self, node: Node) -> dict[str, Any]:
        def encode(leaf: Any) -> Any:
            if isinstance(leaf, Input):
                return {"slot": self._slot(node.inputs[leaf.index])}
            if isinstance(leaf, Tensor):
                return {"constant": self._constant(leaf)}
            return spec.encode_leaf(leaf)

        return {
            "op": node.attributes["op"],
            "args": map_leaves(node.attributes["args"], encode),
            "kwargs": map_leaves(node.attributes["kwargs"], encode),
            "many": node.attributes["many"],
            "outputs": [self._slot(value) for value in node.outputs],
        }

    def _slot(self, value: Value) -> int:
        return self.slots.setdefault(value, len(self.slots))

    def _constant(self, tensor: Tensor, dtype: torch.dtype | None = None) -> int:
        """The number of a constant in a dtype; a copy of it, as training may go on with the model's own."""
        dtype = dtype or tensor.dtype
        key = id(tensor), dtype
        if key not in self.numbers:
            self.numbers[key] = len(self.constants)
            self.kept.append(tensor)
            self.constants.append(tensor.detach().to(dtype, memory_format=torch.contiguous_format, copy=True))
        return self.numbers[key]
