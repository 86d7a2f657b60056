"""What fastcnn is to reach, as one table: which benchmarks a target counts, and the ratio that each has to have.

The ratios are times of torch channels_last over ours in the same run, with the fallback off, if the target does not say
otherwise. A target counts every row of the run that it describes; `selected` draws the few that `--targets` measures.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]  # a benchmark's extra_info; before it ran, what is known of it

SELECTED = 3  # layers a target and batch that `--targets` measures
# Of a selected layer's pass and input, in FLOP and elements: larger ones behave as these do and take minutes.
LARGEST_FLOP, LARGEST_INPUT = 1e10, 3e7
SOME = range(8, 10**9)  # batches
BOTH = range(64, 129)  # channels


@dataclass(frozen=True)
class Target:
    """A ratio to reach: by each of the rows that count, or by their geometric mean."""

    name: str
    bound: float
    counts: Callable[[Row], bool]
    batches: tuple[int, ...]  # at which `--targets` measures it
    value: str = "ratio"  # the row's field
    of_mean: bool = False
    at_most: bool = False  # whether less is better

    def reached_by(self, value: float) -> bool:
        """Whether a row of this value reaches it, to the two digits that are shown."""
        return round(value, 2) <= self.bound if self.at_most else round(value, 2) >= self.bound


def where(direction: str, **wanted: Any) -> Callable[[Row], bool]:
    """Rows of a pass whose fields are the wanted values, or lie in the wanted range or tuple."""

    def counts(row: Row) -> bool:
        if row["pass"] != direction:
            return False
        fields = ((row.get(name), value) for name, value in wanted.items())
        return all(has in value if isinstance(value, range | tuple) else has == value for has, value in fields)

    return counts


def conv(direction: str, **wanted: Any) -> Callable[[Row], bool]:
    """Convolutions, as `where`; `both` is of input and output channels."""
    if "both" in wanted:
        wanted["channels"] = wanted["out_channels"] = wanted.pop("both")
    return where(direction, op="conv2d", **wanted)


def conv3(direction: str = "forward", **wanted: Any) -> Callable[[Row], bool]:
    """Convolutions of 3x3 with stride 1, as `conv`."""
    return conv(direction, kernel=3, stride=1, **wanted)


def either(*predicates: Callable[[Row], bool]) -> Callable[[Row], bool]:
    """Rows that one of the predicates counts."""
    return lambda row: any(counts(row) for counts in predicates)


def but(counts: Callable[[Row], bool], *others: Callable[[Row], bool]) -> Callable[[Row], bool]:
    """Rows that the first predicate counts and none of the others."""
    return lambda row: counts(row) and not either(*others)(row)


GRAD_INPUT, GRAD_WEIGHT = "gradient of input", "gradient of weight"
WEIGHT_128 = conv3(GRAD_WEIGHT, both=BOTH, batch=SOME)
WEIGHT_256 = conv3(GRAD_WEIGHT, both=256, batch=SOME)
STEP = where("training step", network=("lenet", "alexnet", "vgg11", "nin", "googlenet", "resnet18", "densenet"))
VGG = where("training step", network="vgg11")
MEMORY = where("peak memory", network=("alexnet", "vgg11", "nin", "googlenet", "resnet18", "densenet"))
DENSENET = where("peak memory", network="densenet")

NEVER_SLOWER = Target("any layer, by the default rule (fallback on)", 0.95,
                      lambda row: "op" in row, (1, 32), value="ratio_rule")  # fmt: skip
TARGETS = (
    Target("3x3, 64 to 128 channels, maps from 12x12, batch 8 and more", 2.0,
           conv3(both=BOTH, size=range(12, 10**9), batch=SOME), (8, 32)),
    Target("3x3, 64 to 128 channels, maps from 24x24, batch 1", 1.3,
           conv3(both=BOTH, size=range(24, 10**9), batch=1), (1,)),
    Target("3x3, 256 channels at 14x14, batch 8", 1.4, conv3(both=256, size=14, batch=8), (8,)),
    Target("3x3, 256 channels at 14x14, batch 32", 1.6, conv3(both=256, size=14, batch=32), (32,)),
    Target("3x3, 512 channels at 7x7, batch 8", 1.0, conv3(both=512, size=7, batch=8), (8,)),
    Target("3x3, 512 channels at 7x7, batch 32", 1.4, conv3(both=512, size=7, batch=32), (32,)),
    Target("3x3 on 6x6 maps, batch 32", 1.4, conv3(size=6, batch=32), (32,)),
    Target("maps up to 7x7, batch 1", 1.3, conv("forward", size=range(1, 8), batch=1), (1,)),
    Target("3x3 maps, any batch", 1.3, conv("forward", size=3), (1, 8, 32)),
    Target("1x1, batch 1", 1.1, conv("forward", kernel=1, batch=1), (1,)),
    Target("1x1, batch 8 and more", 1.0, conv("forward", kernel=1, batch=SOME), (8, 32)),
    Target("5x5 with stride 1, batch 8 and more", 1.7, conv("forward", kernel=5, stride=1, batch=SOME), (8, 32)),
    Target("stems of one and three channels", 1.3, conv("forward", channels=(1, 3)), (1, 32)),
    Target("LeNet's first convolution, batch 32", 4.0, conv("forward", network="lenet", channels=1, batch=32), (32,)),
    Target("LeNet's second convolution, batch 32", 2.0, conv("forward", network="lenet", channels=6, batch=32), (32,)),
    Target("gradient of input, 3x3, 64 to 128 channels, batch 8 and more", 1.9,
           conv3(GRAD_INPUT, both=BOTH, batch=SOME), (8, 32)),
    Target("gradient of input, 3x3, 256 channels, batch 8 and more", 1.5,
           conv3(GRAD_INPUT, both=256, batch=SOME), (8, 32)),
    Target("gradient of weight, 3x3, 64 to 128 channels, batch 8 and more", 2.0, WEIGHT_128, (8, 32)),
    Target("gradient of weight, 3x3, 256 channels, batch 8 and more", 1.6, WEIGHT_256, (8, 32)),
    Target("gradient of weight, all other layers, batch 8 and more", 1.0,
           but(conv(GRAD_WEIGHT, batch=SOME), WEIGHT_128, WEIGHT_256), (8, 32)),
    Target("BatchNorm and ReLU, forward", 2.5, where("forward", op="batch_norm_relu"), (8, 32)),
    Target("BatchNorm and ReLU, backward", 2.5, where("backward", op="batch_norm_relu"), (8, 32)),
    Target("max pooling, forward", 2.0, where("forward", op="max_pool2d"), (1, 32)),
    Target("max pooling, backward", 1.6, where("backward", op="max_pool2d"), (1, 32)),
    Target("average pooling, forward", 1.3, where("forward", op="avg_pool2d"), (1, 32)),
    Target("average pooling, backward", 1.3, where("backward", op="avg_pool2d"), (1, 32)),
    Target("concat", 1.0, where("forward", op="concat"), (1, 32)),
    NEVER_SLOWER,
    Target("training step, batch 32, against the best of torch", 1.3, STEP, (32,), value="ratio_best"),
    Target("training step, batch 32, geometric mean of the seven", 1.8, STEP, (32,), value="ratio_best", of_mean=True),
    Target("training step of VGG-11, batch 32", 2.0, VGG, (32,), value="ratio_best"),
    Target("peak memory of a training step", 0.9, MEMORY, (32,), value="of_memory", at_most=True),
    Target("peak memory of a training step of DenseNet", 0.6, DENSENET, (32,), value="of_memory", at_most=True),
)  # fmt: skip


@dataclass(frozen=True)
class Result:
    """A target on one number of threads: the rows that it counts, and how they do."""

    target: Target
    threads: int
    rows: int
    reached: int
    mean: float  # geometric
    worst: float
    worst_row: str

    @property
    def met(self) -> bool:
        """Whether the geometric mean reaches the target where that is asked for, else the worst row."""
        return self.target.reached_by(self.mean if self.target.of_mean else self.worst)


def describe(row: Row) -> str:
    """A row in words, but for its number of threads."""
    if "op" not in row:
        return str(row["network"])
    return f"{row['layer']} on {row['input']}, {row['pass']}, batch {row['batch']}"


def results(rows: list[Row], dtype: str = "float32") -> list[Result]:
    """Each target for each number of threads that it was measured with; a half type's is to be never slower."""
    found = []
    for target in TARGETS if dtype == "float32" else [NEVER_SLOWER]:
        counted = [row for row in rows if target.value in row and target.counts(row)]
        for threads in sorted({row["threads"] for row in counted}):
            of_threads = [row for row in counted if row["threads"] == threads]
            values = [row[target.value] for row in of_threads]
            worst = (max if target.at_most else min)(of_threads, key=lambda row, v=target.value: row[v])
            found.append(
                Result(target, threads, len(values), sum(map(target.reached_by, values)),
                       math.exp(statistics.fmean(map(math.log, values))), worst[target.value], describe(worst))
            )  # fmt: skip
    return found


def selected(cases: Iterable[Row]) -> list[Row]:
    """Of all cases, those that answer every target: of each target's layers the least, a middle and the largest one."""
    cases, chosen = list(cases), []
    for target in TARGETS:
        for batch in target.batches:
            counted = [case for case in cases if case["batch"] == batch and target.counts(case)]
            layers = [case for case in counted if "op" in case]
            layers = [case for case in layers if case["flop"] <= LARGEST_FLOP and case["elements"] <= LARGEST_INPUT]
            layers.sort(key=lambda case: (case["flop"], case["elements"]))
            places = {round(i * (len(layers) - 1) / (SELECTED - 1)) for i in range(SELECTED)} if layers else set()
            counted = [case for case in counted if "op" not in case] + [layers[place] for place in sorted(places)]
            chosen += [case for case in counted if case not in chosen]
    return chosen
