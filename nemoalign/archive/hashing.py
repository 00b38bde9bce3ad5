"""Hash tensors on a second core while the first one writes them."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from nemoalign.archive.dtypes import Array
from nemoalign.archive.store import hash_array


class BackgroundHasher:
    """One worker thread; at most two arrays wait for it, so memory stays bounded.

    An array given to ``submit`` must not change until its hash is there.
    """

    def __init__(self) -> None:
        self._worker = ThreadPoolExecutor(1)
        self._last: Future[str] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._worker.shutdown(cancel_futures=kind is not None)

    def submit(self, array: Array) -> Future[str]:
        """Return the coming sha256 of ``array``; waits while an earlier one is still waiting."""
        coming = self._worker.submit(hash_array, array)
        if self._last is not None:
            self._last.result()
        self._last = coming
        return coming
