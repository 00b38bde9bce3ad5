"""What one rank could not do, all ranks know: nobody waits for a rank that gave up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from nemoalign.errors import NemoAlignError, ResourceError

T = TypeVar("T")


class DiskError(ResourceError):
    """Something could not be written: what the system said, a full disk for instance."""


class Attempt:
    """Work of one rank that may fail where others go on; ``agree`` raises on every rank or on none."""

    def __init__(self) -> None:
        self._cause: Exception | None = None

    @property
    def has_failed(self) -> bool:
        """True when something failed on this rank."""
        return self._cause is not None

    def run(self, work: Callable[[], T]) -> T | None:
        """Return what ``work`` returns; None when it fails, or something before it has."""
        if self._cause is None:
            try:
                return work()
            except Exception as error:  # noqa: BLE001 - agree() raises it, on every rank
                self._cause = error
        return None

    def agree(self) -> None:
        """Return when no rank failed. Collective.

        Raises:
            Exception: what the first rank that failed was told, made ``tellable``.
        """
        everywhere: list[Any] = [None] * torch.distributed.get_world_size()
        mine = None if self._cause is None else tellable(self._cause)
        torch.distributed.all_gather_object(everywhere, mine)
        for error in everywhere:
            if error is not None:
                raise error from self._cause


def gathered(mine: list[str]) -> list[str]:
    """Return what all ranks bring, in their order and each once. Collective."""
    everywhere: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everywhere, mine)
    return list(dict.fromkeys(one for ones in everywhere for one in ones))


def tellable(error: Exception) -> Exception:
    """Return ``error`` as another process can be told: DiskError where the system refused to write.

    torch answers a failed write with words of its own; the system's stand in their context.
    """
    if isinstance(error, NemoAlignError | MemoryError):
        return error
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            return DiskError(cause.strerror or str(cause))
        cause = cause.__cause__ or cause.__context__
    return RuntimeError(f"{type(error).__name__}: {error}")
