"""`fastcnn explain`: a network of fastcnn's, torchvision's or timm's, layer by layer, as a table and as a page."""

from __future__ import annotations

import difflib
import importlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from fastcnn._machine import version_of
from fastcnn._torchvision import import_torchvision
from fastcnn.cli.console import make_console, print_plain
from fastcnn.cli.errors import UserError
from fastcnn.cli.settings import find_network
from fastcnn.explanation import explain
from fastcnn.train.files import write_atomically

DEFAULT_SIZE = 224  # pixels, of torchvision's networks


@dataclass(frozen=True)
class Network:
    """A network with random weights, and the images that it takes."""

    name: str
    model: nn.Module
    channels: int
    size: int  # pixels, unless the user says otherwise


def explain_network(
    name: str, size: int | None, batch: int, threads: int | None, train: bool, page: Path | None, seconds: float
) -> int:
    """Print the table, write the page if one is asked for, and return the exit code."""
    if page is not None and page.is_dir():
        raise UserError(f"--html {page}: is a folder; expected the name of a file")
    if threads is not None:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    network = load_network(name)
    size = size or network.size
    example = torch.randn(batch, network.channels, size, size)
    console = make_console()
    print_plain(console, f"measuring for some {seconds:g} seconds")
    try:
        found = explain(network.model.train(train), example, seconds=seconds, title=network.name)
    except (RuntimeError, ValueError, AssertionError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if "more than 1 value per channel" in reason:
            reason += "; a larger --batch has more"
        images = f"{batch} image{'s' if batch != 1 else ''} of {size} pixels"
        raise UserError(f"{name} does not take {images}{' in training' if train else ''}: {reason}") from error
    if page is not None:
        write_atomically(page, lambda file: file.write(found.to_html().encode()))
        print_plain(console, f"page: {page}")
    return 0


def load_network(name: str) -> Network:
    """Build the network called `name`: of ours, or torchvision:NAME, or timm:NAME.

    Raises:
        UserError: there is no network of that name, or its package cannot be imported.
    """
    source, colon, inner = name.partition(":")
    if not colon:
        info = find_network(name)
        return Network(name, info.build(), 1, info.input_size)
    if source not in _SOURCES:
        raise UserError(f"there is no collection {source!r}: expected {', '.join(f'{s}:NAME' for s in _SOURCES)}")
    return _SOURCES[source](inner)


def _torchvision(name: str) -> Network:
    models = _import("torchvision.models")
    _check_name("torchvision", name, models.list_models(module=models))
    # These two alone draw their weights by a way that takes minutes, unless they are told not to.
    slow = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    return Network(f"torchvision:{name}", models.get_model(name, weights=None, **slow), 3, DEFAULT_SIZE)


def _timm(name: str) -> Network:
    timm = _import("timm")
    _check_name("timm", name, timm.list_models())
    model = timm.create_model(name, pretrained=False)
    channels, _, size = getattr(model, "default_cfg", {}).get("input_size", (3, 0, DEFAULT_SIZE))
    return Network(f"timm:{name}", model, channels, size)


_SOURCES: dict[str, Callable[[str], Network]] = {"torchvision": _torchvision, "timm": _timm}


def _check_name(source: str, name: str, known: Sequence[str]) -> None:
    if name in known:
        return
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else f"there are {len(known)}, such as {', '.join(known[:3])}"
    raise UserError(f"{source} has no network {name!r}: {hint}")


def _import(module: str) -> ModuleType:
    """Import a package of networks, or say in one line what is the matter with it."""
    package = module.partition(".")[0]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import_torchvision()  # timm imports it as well
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name not in (package, "torchvision"):
            raise UserError(f"{package} cannot be imported: {error}") from error
        raise UserError(f"{error.name} is not installed: pip install {error.name}") from error
    except (ImportError, RuntimeError, OSError) as error:
        # torchvision's op library is built for one torch, and registers nothing beside another.
        versions = f"torchvision {version_of('torchvision')} and torch {version_of('torch')}"
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{package} cannot be imported ({reason}): {versions} are probably not built for each other; "
            "install both from the same index, see pytorch.org"
        ) from error
