"""Which errors are the user's to mend, and so end in one line instead of a traceback."""

from __future__ import annotations

from fastcnn.data import DataError, MissingExtraError
from fastcnn.train import CheckpointError


class UserError(Exception):
    """The command line asks for something that cannot be done."""


USER_ERRORS = (UserError, DataError, MissingExtraError, CheckpointError)
