"""Remember the last pages of bytes that are slow to come by, so that headers cost one fetch."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable


class Pages:
    """Bytes behind ``fetch(offset, size)``, asked for in whole pages of which the last are kept.

    What is longer than the pages that are kept (a tensor) is fetched as it is and not remembered.
    """

    def __init__(
        self, fetch: Callable[[int, int], bytes], size: int, *, page: int, keep: int
    ) -> None:
        self._fetch = fetch
        self._size = size
        self._page = page
        self._keep = keep
        self._pages: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, offset: int, size: int) -> bytes:
        """Return the bytes of a range that lies inside."""
        if size == 0:
            return b""
        first, last = offset // self._page, (offset + size - 1) // self._page
        if last - first >= self._keep:
            return self._fetch(offset, size)
        with self._lock:
            self._load([n for n in range(first, last + 1) if n not in self._pages])
            for number in range(first, last + 1):
                self._pages.move_to_end(number)
            whole = b"".join(self._pages[number] for number in range(first, last + 1))
            while len(self._pages) > self._keep:
                self._pages.popitem(last=False)
        start = offset - first * self._page
        return whole[start : start + size]

    def _load(self, missing: list[int]) -> None:
        """Fetch all missing pages, and what lies between them, at once."""
        if not missing:
            return
        start = missing[0] * self._page
        end = min((missing[-1] + 1) * self._page, self._size)
        data = self._fetch(start, end - start)
        self.remember(start, data)

    def remember(self, start: int, data: bytes) -> None:
        """Keep whole pages that were fetched already; ``start`` is where a page begins."""
        for at in range(0, len(data), self._page):
            self._pages[(start + at) // self._page] = data[at : at + self._page]
