"""A real server on this machine that sends parts of files, and counts what it sends."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Served:
    """What the server has, how it behaves, and what it was asked."""

    files: dict[str, bytes]
    behaviour: str = "good"
    url: str = ""
    ranges: list[tuple[int, int]] = field(default_factory=list)
    sent: int = 0


@contextmanager
def serving(files: dict[str, bytes], behaviour: str = "good") -> Iterator[Served]:
    """Serve files under ``/name``; ``behaviour`` names what the server does wrong."""
    served = Served(files, behaviour)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            _answer(self, served)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _answer(handler: BaseHTTPRequestHandler, served: Served) -> None:
    name = handler.path.partition("?")[0][1:]
    kind, _, target = served.behaviour.partition(" ")
    if kind == "redirect" and name != "target":
        handler.send_response(302)
        handler.send_header("Location", target or f"{served.url}/target")
        handler.end_headers()
        return
    if name not in served.files:
        handler.send_error(404)
        return
    content = served.files[name]
    asked = re.fullmatch(r"bytes=(\d+)-(\d+)", handler.headers.get("Range", ""))
    assert asked, "every request asks for a range"
    start, last = int(asked[1]), min(int(asked[2]), len(content) - 1)
    served.ranges.append((start, last + 1))
    body = content[start : last + 1]
    stated = {
        "other range": f"bytes {start + 1}-{last + 1}/{len(content)}",
        "huge": f"bytes {start}-{1 << 50}/{1 << 55}",
        "no numbers": "bytes a-b/c",
        "grows": f"bytes {start}-{last}/{len(content) + len(served.ranges)}",
    }.get(served.behaviour, f"bytes {start}-{last}/{len(content)}")
    handler.send_response(200 if kind == "ignores" else 206)
    handler.send_header("Content-Range", stated)
    handler.end_headers()
    body = body[: len(body) // 2] if kind == "cuts" else body
    served.sent += len(body)
    handler.wfile.write(body)
