"""Errors that more than one part of the package raises."""


class CheckpointError(ValueError):
    """A checkpoint that is damaged, foreign or of another run; the message names the file and what is wrong."""
