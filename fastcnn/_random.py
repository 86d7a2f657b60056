"""The states of Python's, torch's and numpy's random numbers."""

from __future__ import annotations

import pickle
import random
import sys
from typing import Any

import torch


class RandomState:
    """The states of the generators on the CPU when it was made; numpy's where numpy was loaded then."""

    def __init__(self) -> None:
        self._numpy: Any = sys.modules.get("numpy")
        self._states = self._read()

    def is_current(self) -> bool:
        """Whether nothing was drawn since."""
        (of_python, of_torch, of_numpy), (python_now, torch_now, numpy_now) = self._states, self._read()
        same = of_python == python_now and torch.equal(of_torch, torch_now)
        return same and pickle.dumps(of_numpy) == pickle.dumps(numpy_now)  # with arrays in dicts

    def restore(self) -> None:
        """Puts the generators back."""
        of_python, of_torch, of_numpy = self._states
        random.setstate(of_python)
        torch.set_rng_state(of_torch)
        if self._numpy is not None:
            self._numpy.random.set_state(of_numpy)

    def _read(self) -> tuple[Any, torch.Tensor, Any]:
        of_numpy = None if self._numpy is None else self._numpy.random.get_state(legacy=False)
        return random.getstate(), torch.get_rng_state(), of_numpy
