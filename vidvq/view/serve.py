"""The page and its clips on the loopback address, and nothing else."""

import json
from collections.abc import Callable
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from typing import Any
from urllib.parse import parse_qs, urlsplit

from vidvq.errors import UsageError
from vidvq.log import info
from vidvq.view.gallery import Code, Gallery

Answer = Callable[..., Any]


def serve(page: bytes, gallery: Gallery, port: int) -> None:
    """Serve the page on 127.0.0.1 until interrupted; port 0 takes a free one.

    Raises:
        UsageError: the port is taken.
    """
    server = make_server(page, answers(gallery), port)
    info(f"http://127.0.0.1:{server.server_port}/ until Ctrl-C")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()


def answers(gallery: Gallery) -> dict[str, Answer]:
    """What the page may ask for, by path; the arguments of each are whole numbers of these names, and a ``text``."""
    # One clip is decoded at a time; the pages of several browsers wait.
    lock = Lock()

    def lines(start: int, count: int, text: str = "") -> Any:
        return gallery.lines(start, min(count, 100), text)

    @lru_cache(maxsize=64)
    def clip(index: int) -> Any:
        return gallery.clip(index)

    def code(book: int, code: int) -> Any:
        return gallery.occurrences(Code(book, code))

    def alone(answer: Answer) -> Answer:
        def locked(**asked: Any) -> Any:
            with lock:
                return answer(**asked)

        return locked

    return {"/clips": alone(lines), "/clip": alone(clip), "/code": alone(code)}


def make_server(page: bytes, answers: dict[str, Answer], port: int) -> ThreadingHTTPServer:
    """A server of the page on 127.0.0.1, not yet started."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # Another site's name that resolves to this machine must not read the page.
            host = (self.headers.get("Host") or "").rpartition(":")[0]
            asked = urlsplit(self.path)
            if host not in {"127.0.0.1", "localhost"}:
                self.send_error(404)
            elif self.path == "/":
                self._send(200, "text/html; charset=utf-8", page)
            elif asked.path in answers:
                try:
                    values = {name: given[0] for name, given in parse_qs(asked.query).items()}
                    known = {name: value if name == "text" else int(value) for name, value in values.items()}
                    found = answers[asked.path](**known)
                except (ValueError, TypeError, OSError) as error:
                    # A damaged shard, or a question that the page does not ask.
                    self._send(400, "text/plain; charset=utf-8", str(error).encode())
                else:
                    self._send(200, "application/json", json.dumps(found, separators=(",", ":")).encode())
            else:
                self.send_error(404)

        def _send(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    try:
        return ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except OSError as error:
        raise UsageError(f"port={port} of 127.0.0.1 cannot be had ({error.strerror}); give another --port") from error
