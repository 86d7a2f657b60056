"""The command `fastcnn`. Only `main` is needed from outside; it imports the rest when it runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; a mistake of the user's is one line on stderr and code 2."""
    from fastcnn.data.errors import MissingExtraError, require

    try:
        for module in ("typer", "rich"):
            require(module, "the command line", "'fastcnn[train]'")
    except MissingExtraError as error:
        return _fail(str(error))
    from fastcnn.cli.app import app
    from fastcnn.cli.errors import USER_ERRORS

    try:
        code = app(
            args=list(sys.argv[1:] if arguments is None else arguments) or ["--help"],
            prog_name="fastcnn",
            standalone_mode=False,
        )
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except USER_ERRORS as error:
        return _fail(str(error))
    except OSError as error:
        if error.filename is None:
            raise
        return _fail(f"{error.filename}: {error.strerror}")
    except Exception as error:
        # The errors that typer itself reports (unknown option, bad value) share no base class of a public name.
        format_message = getattr(error, "format_message", None)
        if format_message is None:
            raise
        command = getattr(getattr(error, "ctx", None), "command_path", "fastcnn")
        return _fail(f"{format_message()} (see {command} --help)")
    return code if isinstance(code, int) else 0


def _fail(message: str) -> int:
    print(f"fastcnn: {' '.join(message.split())}", file=sys.stderr)
    return EXIT_USAGE
