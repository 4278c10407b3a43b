"""HTTP server of the page and its clips, on the loopback address only."""

import json
import sys
from collections.abc import Callable
from functools import lru_cache, wraps
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from inspect import signature
from threading import Lock
from typing import Any
from urllib.parse import parse_qs, urlsplit

from vidvq.errors import UsageError
from vidvq.log import info
from vidvq.view.gallery import Gallery

Route = Callable[..., Any]


def serve(page: bytes, routes: dict[str, Route], port: int) -> None:
    """Serve the page on 127.0.0.1 until interrupted.

    Args:
        port: TCP port; 0 for a free one.

    Raises:
        UsageError: the port is in use.
    """
    server = make_server(page, routes, port)
    info(f"http://127.0.0.1:{server.server_port}/ until Ctrl-C")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()


def _parameters(route: Route, query: str) -> dict[str, Any]:
    """Parameters of a route: integers, except ``text``; others are refused."""
    try:
        values = {name: given[0] for name, given in parse_qs(query).items()}
        known = {name: value if name == "text" else int(value) for name, value in values.items()}
        signature(route).bind(**known)
    except (ValueError, TypeError) as error:
        raise UsageError(f"the parameters {query!r} are not those that the page sends; reload the page") from error
    return known


def build_routes(gallery: Gallery) -> dict[str, Route]:
    """Functions behind the paths that the page requests; query parameters are integers, except ``text``."""

    def clips(start: int, count: int, text: str = "") -> Any:
        return gallery.list_clips(start, min(count, 100), text)

    @lru_cache(maxsize=64)
    def clip(index: int) -> Any:
        return gallery.clip(index)

    return one_at_a_time({"/clips": clips, "/clip": clip, "/code": gallery.occurrences})


def one_at_a_time(routes: dict[str, Route]) -> dict[str, Route]:
    """Make requests wait for one another, so that the network runs for one of them at a time."""
    lock = Lock()

    def exclusive(route: Route) -> Route:
        @wraps(route)
        def locked(**query: Any) -> Any:
            with lock:
                return route(**query)

        return locked

    return {path: exclusive(route) for path, route in routes.items()}


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        # A browser that leaves a page closes its connections.
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def make_server(page: bytes, routes: dict[str, Route], port: int) -> ThreadingHTTPServer:
    """Create a server of the page on 127.0.0.1, not yet started.

    Raises:
        UsageError: the port is in use.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # Reject other host names (DNS rebinding).
            host = (self.headers.get("Host") or "").partition(":")[0]
            try:
                request = urlsplit(self.path)
            except ValueError:
                self.send_error(400)
                return
            if host not in {"127.0.0.1", "localhost"}:
                self.send_error(404)
            elif self.path == "/":
                self._send(200, "text/html; charset=utf-8", page)
            elif self.headers.get("Sec-Fetch-Site", "none") not in {"none", "same-origin"}:
                # A page of another origin cannot read the answer, but its requests would cost work.
                self.send_error(403)
            elif request.path in routes:
                route = routes[request.path]
                try:
                    found = route(**_parameters(route, request.query))
                except (ValueError, OSError) as error:
                    # A damaged shard, or parameters that the page never sends.
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
        return _Server(("127.0.0.1", port), Handler)
    except OSError as error:
        raise UsageError(f"port {port} of 127.0.0.1 is not free ({error.strerror}); give another --port") from error
