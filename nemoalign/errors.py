"""Every error a person can cause, and the exit code scripts may depend on.

An error is one paragraph of up to three sentences: what is wrong with the actual values, where they
came from, and what to type. The command line prints it without a traceback (``-v`` adds one).
"""

from __future__ import annotations

STOPPED = 75
"""Exit code of a run that a signal or a time limit ended after a clean save: requeue it."""

INTERRUPTED = 130
"""Exit code of a run that Ctrl-C ended after a clean save."""


class NemoAlignError(Exception):
    """A mistake or a circumstance we can name; anything else that escapes is our bug (exit 1)."""

    exit_code = 1


class ConfigError(NemoAlignError, ValueError):
    """A wrong command, flag, setting or layout."""

    exit_code = 2


class SourceError(NemoAlignError):
    """An input is missing, unreadable, truncated, hostile or not a checkpoint at all."""

    exit_code = 3


class ContentError(NemoAlignError):
    """Tensors are missing, unused or misshapen, or a locked architecture key was changed."""

    exit_code = 4


class ShapeError(ContentError, ValueError):
    """A tensor does not have the shape that its rule or the configuration demands."""


class ConflictError(NemoAlignError):
    """The output exists, or a run directory cannot be continued with these settings."""

    exit_code = 5


class VerificationError(NemoAlignError):
    """What was written, or what training starts from, is not what it should be."""

    exit_code = 6


class ResourceError(NemoAlignError):
    """The environment lacks something: a GPU, an optional package, memory, disk."""

    exit_code = 7


class LostRankError(ResourceError):
    """Another rank of the run went away while this one waited for it."""


class DataError(NemoAlignError):
    """Training or validation data is malformed, empty or does not fit the model."""

    exit_code = 8


class DivergedError(NemoAlignError):
    """The loss is no longer a finite number."""

    exit_code = 9


class Stopped(NemoAlignError):
    """A signal or time limit ended the run after everything was saved."""

    exit_code = STOPPED


class Interrupted(Stopped):
    """Ctrl-C ended the run after everything was saved."""

    exit_code = INTERRUPTED
