"""One page on the loopback address, and nothing else."""

from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from vidvq.log import info


def serve(page: bytes, port: int) -> None:
    """Serve the page on 127.0.0.1 until interrupted; port 0 takes a free one.

    Raises:
        ValueError: the port is taken.
    """
    server = make_server(page, port)
    info(f"http://127.0.0.1:{server.server_port}/ until Ctrl-C")
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass
    finally:
        server.server_close()


def make_server(page: bytes, port: int) -> ThreadingHTTPServer:
    """A server of the page on 127.0.0.1, not yet started."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # Another site's name that resolves to this machine must not read the page.
            host = (self.headers.get("Host") or "").rpartition(":")[0]
            if self.path != "/" or host not in {"127.0.0.1", "localhost"}:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(page)))
            self.send_header("X-Content-Type-Options", "nosniff")
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, format: str, *args: object) -> None:
            pass

    try:
        return ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except OSError as error:
        raise ValueError(f"port={port} of 127.0.0.1 cannot be had ({error.strerror}); give another --port") from error
