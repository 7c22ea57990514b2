"""What a user did wrong: the errors that the command line tells in one line. Any other exception is a bug of this
package and keeps its traceback."""

from __future__ import annotations


class GranvitError(ValueError):
    """Bad input, settings or files; the message names the file and the field. Base of all that a user can mend."""


class CheckpointError(GranvitError):
    """A checkpoint that is damaged, foreign or of another run; the message names the file and what is wrong."""


class BusyError(GranvitError):
    """Another process is writing where this one is to write; the message says which."""


class ExportError(GranvitError):
    """A model that cannot be written in the form asked for without changing what it does."""


def in_one_line(error: Exception) -> str:
    """What a person is told of an error; of one from the system the file and the reason."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split())


def flag(setting: str) -> str:
    """A setting as it is typed on the command line."""
    return f"--{setting.replace('_', '-')}"
