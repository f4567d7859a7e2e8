"""A web server on loopback that fails as it is told to: files of a folder, or a proxy before another server."""

import http.client
import ssl
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


def redirect(to: bytes) -> bytes:
    return b"HTTP/1.1 302 Found\r\nLocation: " + to + b"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Flaky:
    """What a server has been asked, and the faults it has in store.

    ``faults[name]`` is a list that requests for the file of that name (GET of its bytes) use up from the front:
    an HTTP status; ``cut`` (half of the body), ``slow`` (in small pieces), ``stall`` (nothing for a long time),
    ``reset`` (no answer), ``wrong`` (other bytes); the bytes of a whole answer, of HTTP or not, or what makes its
    pieces, ``sent`` until the client hangs up; ``None``: no fault. ``always[name]`` is one that stays.
    """

    def __init__(self, folder: Path | None = None, backend: str | None = None):
        self.folder, self.backend = folder, backend
        self.faults: dict[str, list] = defaultdict(list)
        self.always: dict[str, object] = {}
        self.requests: Counter[str] = Counter()
        self.whole: Counter[str] = Counter()
        self.sent = 0

    @contextmanager
    def serve(self, context: ssl.SSLContext | None = None) -> Iterator[str]:
        """The address of the server, on all of 127.0.0.0/8, with TLS if a context is given."""
        server = _Server(("0.0.0.0", 0), _handler(self))
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            server.server_close()

    def answer(self, handler: BaseHTTPRequestHandler) -> tuple[int, list[tuple[str, str]], bytes]:
        if self.backend is None:
            path = self.folder and self.folder / unquote(urlsplit(handler.path).path).lstrip("/")
            return (200, [], path.read_bytes()) if path and path.is_file() else (404, [], b"no such file")
        length = int(handler.headers.get("Content-Length", 0))
        connection = http.client.HTTPConnection(urlsplit(self.backend).netloc)
        connection.request(handler.command, handler.path, handler.rfile.read(length), dict(handler.headers))
        response = connection.getresponse()
        kept = [
            (k, v) for k, v in response.getheaders() if k.lower() not in ("connection", "transfer-encoding", "date")
        ]
        return response.status, kept, response.read()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address) -> None:
        """Clients hang up: no news here."""


def _handler(flaky: Flaky) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            name = urlsplit(self.path).path.rpartition("/")[2]
            status, headers, body = flaky.answer(self)
            fault = None
            if self.command == "GET" and name:
                flaky.requests[name] += 1
                fault = flaky.always.get(name) or (flaky.faults[name].pop(0) if flaky.faults[name] else None)
            if isinstance(fault, bytes) or callable(fault):
                self.close_connection = True
                for piece in [fault] if isinstance(fault, bytes) else fault():
                    self.wfile.write(piece)
                    flaky.sent += len(piece)
                return
            if isinstance(fault, int):
                status, headers, body = fault, [], b"injected"
            if fault == "reset":
                self.close_connection = True
                return
            if fault == "wrong":
                body = body[:-1] + bytes([body[-1] ^ 1])
            self.send_response(status)
            for key, value in headers:
                if key.lower() != "content-length":
                    self.send_header(key, value)
            length = {k.lower(): v for k, v in headers}.get("content-length") if self.command == "HEAD" else None
            self.send_header("Content-Length", length or str(len(body)))
            self.end_headers()
            if self.command == "HEAD":
                return
            # Before it is sent: whoever has all of it looks at once.
            if self.command == "GET" and status in (200, 206) and fault in (None, "slow"):
                flaky.whole[name] += 1
            try:
                self._body(body, fault)
            except OSError:
                self.close_connection = True

        def _body(self, body: bytes, fault) -> None:
            if fault in ("cut", "stall"):
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
                if fault == "stall":
                    time.sleep(30)
                self.close_connection = True
            elif fault == "slow":
                piece = max(1, len(body) // 20)
                for i in range(0, len(body), piece):
                    self.wfile.write(body[i : i + piece])
                    self.wfile.flush()
                    time.sleep(0.01)
            else:
                self.wfile.write(body)

        do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

        def log_message(self, *arguments) -> None:
            pass

    return Handler
