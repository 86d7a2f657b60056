"""What a person sees: tables, lines and progress bars. A terminal gets bars and colours, a file plain lines."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from fastcnn.train import EpochRecord, History

PLAIN_WIDTH = 160  # a file has no width: no table of ours is wider
NO_TASK = TaskID(0)


def make_console() -> Console:
    """Return a console on the present stdout."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PLAIN_WIDTH)


def make_table(title: str | None, columns: Mapping[str, str], caption: str | None = None) -> Table:
    """Return a table of `columns`, name to "left" or "right"."""
    table = Table(
        title=title,
        caption=caption,
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
        pad_edge=False,
    )
    for name, justify in columns.items():
        table.add_column(name, justify="right" if justify == "right" else "left")
    return table


def print_plain(console: Console, text: str) -> None:
    """Print a line as it is: not wrapped, without markup."""
    console.print(text, markup=False, soft_wrap=True)


class _RateColumn(ProgressColumn):
    """Examples per second."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.0f} examples/s")


class Bar:
    """A progress bar, or nothing where there is no terminal."""

    def __init__(self, progress: Progress | None, task: TaskID = NO_TASK) -> None:
        """Stand for one task of `progress`, or for none."""
        self._progress, self._task = progress, task

    def describe(self, text: str) -> None:
        """Say what is being done."""
        if self._progress is not None:
            self._progress.update(self._task, description=text)

    def advance(self, examples: int) -> None:
        """Count examples as done."""
        if self._progress is not None:
            self._progress.advance(self._task, examples)


class Reporter:
    """Reports a run's epochs, as lines, and its batches, as a bar where the output is a terminal."""

    def __init__(self, console: Console, quiet: bool = False) -> None:
        """Report on `console`, or, `quiet`, not at all."""
        self.console, self.quiet = console, quiet

    def line(self, text: str) -> None:
        """Print a line, above the bar if there is one."""
        if not self.quiet:
            print_plain(self.console, text)

    def epoch(self, name: str, record: EpochRecord, epochs: int) -> None:
        """Print an epoch's figures."""
        self.line(
            f"{name}  epoch {record.epoch}/{epochs}  loss {record.loss:.3f}  train acc {record.train_accuracy:.3f}"
            f"  test acc {record.test_accuracy:.3f}  {record.examples_per_second:.1f} examples/s"
        )

    @contextmanager
    def progress(self, examples: int) -> Iterator[Bar]:
        """Show a bar over `examples` on a terminal, nothing elsewhere; yield what advances it."""
        if self.quiet or not self.console.is_terminal:
            yield Bar(None)
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            _RateColumn(),
            TimeRemainingColumn(),
        )
        # The bar redraws by a clock of its own; a batch only adds to a number.
        with Progress(*columns, console=self.console, transient=True) as progress:
            yield Bar(progress, progress.add_task("", total=examples))


RESULT_COLUMNS = {
    "network": "left",
    "pixels": "right",
    "layers": "left",
    "loss": "right",
    "train acc": "right",
    "test acc": "right",
    "examples/s": "right",
    "ratio": "right",
    "quartiles": "right",
}


def add_results(table: Table, network: str, pixels: int, histories: Mapping[str, History]) -> None:
    """Add a row for each of a network's runs to a table of RESULT_COLUMNS.

    examples/s is the median over the epochs. The ratio, where there is another run with torch's layers, is the median
    over the epochs of the ratio to that run's same epoch, its neighbour in time; so a busy machine, which slows both,
    moves it less. The quartiles are those of the epochs' ratios.
    """
    reference = histories.get("torch") if len(histories) > 1 else None
    for layers, history in histories.items():
        last = history.epochs[-1]
        ratios = []
        if reference is not None and history is not reference:
            ratios = epoch_ratios(history, reference)
        table.add_row(
            network,
            str(pixels),
            layers,
            f"{last.loss:.3f}",
            f"{last.train_accuracy:.3f}",
            f"{last.test_accuracy:.3f}",
            f"{history.median_examples_per_second:.1f}",
            f"{statistics.median(ratios):.2f}" if ratios else "1.00" if history is reference else "",
            _quartiles(ratios),
        )


def epoch_ratios(history: History, reference: History) -> list[float]:
    """Return each epoch's rate over the rate of the reference's same epoch."""
    pairs = zip(history.epochs, reference.epochs, strict=False)
    return [record.examples_per_second / other.examples_per_second for record, other in pairs]


def _quartiles(ratios: list[float]) -> str:
    if len(ratios) < 2:
        return ""
    low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return f"{low:.2f} to {high:.2f}"
