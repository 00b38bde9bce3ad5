"""Another rank that went away: what torch.distributed says of it, known in this one place.

There is no class of its own for it: gloo's complaint is a RuntimeError, NCCL's a DistBackendError that
everything else is too. So the words decide, and only words of a connection whose other end is gone. A wait
that timed out is not among them: ranks that call different collectives, our bug, wait like that too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from nemoalign.errors import LostRankError

_GONE = (
    # gloo: the socket to a rank was closed by its end, or the rank stopped listening.
    r"gloo.*?(Connection closed by peer|Connection reset by peer|Broken pipe|Connection refused)",
    # NCCL: its own word for a remote end that is gone.
    r"(ncclRemoteError|remote process exiting prematurely|Connection closed by remote peer)",
    # The store that ranks meet at; rank 0 holds it.
    r"(Connection was likely closed)",
)
_ADDRESS = re.compile(r"\[([0-9a-fA-F.:]+)\]:\d+")
_HERE = ("127.", "::1", "::ffff:127.")


@contextmanager
def naming_lost_ranks() -> Iterator[None]:
    """Within it the loss of another rank is raised as LostRankError."""
    try:
        yield
    except RuntimeError as error:
        if (lost := lost_rank(error)) is None:
            raise
        raise lost from error


def lost_rank(error: BaseException) -> LostRankError | None:
    """Return what to say when ``error`` means that another rank went away, else None."""
    text = str(error)
    found = isinstance(error, RuntimeError) and next(
        (match for words in _GONE if (match := re.search(words, text, re.DOTALL))), None
    )
    if not found:
        return None
    return LostRankError(
        f"{_who(text)} went away while this one waited for it ({found[1]}). Its own last words tell why; "
        "the same command goes on from the run's last checkpoint."
    )


def _who(text: str) -> str:
    """Return which rank it was, as far as that is known."""
    if os.environ.get("WORLD_SIZE") == "2" and os.environ.get("RANK") in ("0", "1"):
        return f"Rank {1 - int(os.environ['RANK'])}"
    address = _ADDRESS.search(text)
    if address and not address[1].startswith(_HERE):
        return f"A rank on {address[1]}"
    return "Another rank"
