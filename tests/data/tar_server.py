"""A folder of tar shards behind HTTP on this machine, with faults on order."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Served:
    """What the server does and has done.

    num_drops: how many of the next answers of a shard are cut in the middle. status: answers every request if not 0.
    redirect: where every request is sent. has_length: whether answers announce their length.
    """

    address: str
    num_drops: int = 0
    status: int = 0
    redirect: str = ""
    has_length: bool = True
    requests: Counter[str] = field(default_factory=Counter)


@contextmanager
def serve(folder: Path) -> Iterator[Served]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.rpartition("/")[2]
            served.requests[name] += 1
            if served.redirect:
                self.send_response(302)
                self.send_header("Location", served.redirect)
                self.end_headers()
            elif served.status or not (folder / name).is_file():
                self.send_error(served.status or 404)
            else:
                self._answer((folder / name).read_bytes(), name)

        def _answer(self, content: bytes, name: str) -> None:
            self.send_response(200)
            if served.has_length:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if name.endswith(".tar") and served.num_drops:
                served.num_drops -= 1
                content = content[: len(content) // 2]
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        served = Served(f"http://127.0.0.1:{server.server_port}/shards")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield served
        finally:
            server.shutdown()
            thread.join()
