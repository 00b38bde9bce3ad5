"""A file on a server, read by ranges: only the bytes that are asked for travel.

The standard library speaks http and https; s3:// and gs:// go through fsspec where it is installed.
"""

from __future__ import annotations

import http.client
import importlib
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import IO, Any
from urllib.parse import urlsplit

from nemoalign.archive.pages import Pages
from nemoalign.archive.regions import Region
from nemoalign.archive.urls import UrlPath
from nemoalign.errors import ConfigError, ResourceError, SourceError

HTTP, FSSPEC = ("http", "https"), ("s3", "gs")

PAGE, KEPT_PAGES = 16 << 10, 256
BLOCK = 64 << 10
MAX_FETCHED = 256 << 20
"""More than the headers of any checkpoint; an archive that needs it is better downloaded whole."""

SOCKET_SECONDS = 20
REQUEST_SECONDS = 120
"""A server that sends a byte now and then is given up after this."""

_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})")

Get = Callable[[int, int], tuple[bytes, int]]
"""Takes offset and size of a range; returns its bytes (fewer at the end) and the file's size."""


class RemoteFile:
    """The bytes behind a URL; opening it asks for the first page, which tells the size."""

    def __init__(self, url: str) -> None:
        self.path = UrlPath(url.partition("?")[0])
        self.requests = 0
        self.fetched = 0
        self._get = _getter(url, str(self.path))
        first, self.size = self._ask(0, PAGE)
        self._pages = Pages(self._fetch, self.size, page=PAGE, keep=KEPT_PAGES)
        self._pages.remember(0, first)

    @property
    def region(self) -> Region:
        """The whole file."""
        return Region(self.path, 0, self.size, self)

    def read(self, offset: int, size: int) -> bytes:
        """Return the bytes of a range."""
        return self._pages.read(offset, size)

    def _fetch(self, offset: int, size: int) -> bytes:
        data, total = self._ask(offset, size)
        if len(data) != size or total != self.size:
            raise SourceError(
                f"{self.path} changed while it was read, or was cut short. Try again."
            )
        return data

    def _ask(self, offset: int, size: int) -> tuple[bytes, int]:
        if self.fetched + size > MAX_FETCHED:
            raise SourceError(
                f"{self.path} needs more than {MAX_FETCHED} bytes to be inspected. Download it and "
                "inspect the file."
            )
        data, total = self._get(offset, size)
        self.requests += 1
        self.fetched += len(data)
        return data, total


def _getter(url: str, shown: str) -> Get:
    parts = urlsplit(url)
    if parts.scheme in HTTP and parts.hostname and "@" not in parts.netloc:
        return _http(url, shown)
    if parts.scheme in FSSPEC:
        return with_fsspec(url, shown)
    raise ConfigError(
        f"{shown} cannot be read where it is: {', '.join((*HTTP, *FSSPEC))} addresses without a "
        "password can. Download it and give the file."
    )


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to http and https only, and never from https to http."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        scheme = urlsplit(newurl).scheme
        if scheme not in HTTP or (req.type == "https" and scheme == "http"):
            raise urllib.error.HTTPError(
                req.full_url, code, f"it leads to {scheme}:, which is not followed", headers, fp
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _http(url: str, shown: str) -> Get:
    opener = urllib.request.OpenerDirector()  # not build_opener, which also knows file: and ftp:
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        _Redirects(),
    ):
        opener.add_handler(handler)

    def get(offset: int, size: int) -> tuple[bytes, int]:
        wanted = {"Range": f"bytes={offset}-{offset + size - 1}", "Accept-Encoding": "identity"}
        try:
            request = urllib.request.Request(url, headers={**wanted, "User-Agent": "nemoalign"})
            with opener.open(request, timeout=SOCKET_SECONDS) as response:
                end, total = _stated_range(response, offset, shown)
                if not offset <= end < min(offset + size, total):
                    raise _other_range(shown)
                return _received(response, end + 1 - offset, shown), total
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise SourceError(
                f"{shown} cannot be read: {str(error)[:200]}. Check the address and the network."
            ) from error

    return get


def _stated_range(response: Any, offset: int, shown: str) -> tuple[int, int]:
    """Return the last byte that comes, and the file's size."""
    stated = _RANGE.fullmatch(response.headers.get("Content-Range") or "")
    if response.status != http.HTTPStatus.PARTIAL_CONTENT or stated is None:
        raise SourceError(
            f"The server of {shown} does not send parts of a file (status {response.status} where "
            "206 is expected), so all of it would travel. Download it and inspect the file."
        )
    start, end, total = map(int, stated.groups())
    if start != offset:
        raise _other_range(shown)
    return end, total


def _other_range(shown: str) -> SourceError:
    return SourceError(
        f"The server of {shown} sends other bytes than it was asked for. Download it."
    )


def _received(response: Any, size: int, shown: str) -> bytes:
    deadline = time.monotonic() + REQUEST_SECONDS
    parts: list[bytes] = []
    left = size
    while left:
        part = response.read1(min(BLOCK, left))
        if not part or time.monotonic() > deadline:
            raise SourceError(
                f"{shown} stopped sending after {size - left} of {size} bytes. Try again."
            )
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def with_fsspec(url: str, shown: str) -> Get:
    """Return what gets ranges through fsspec; raises ResourceError when a package is missing."""
    try:
        fsspec: Any = importlib.import_module("fsspec")
        files, inside = fsspec.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise ResourceError(
            f"{shown} needs packages that are not installed ({str(error)[:200]}). "
            'Type: pip install "nemoalign[remote]"'
        ) from error

    def get(offset: int, size: int) -> tuple[bytes, int]:
        try:
            total = int(files.size(inside))
            return files.cat_file(inside, start=offset, end=min(offset + size, total)), total
        except Exception as error:  # each cloud's library has errors of its own
            raise SourceError(
                f"{shown} cannot be read: {str(error)[:200]}. Check the address and your access."
            ) from error

    return get
