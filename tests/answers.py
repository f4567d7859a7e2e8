"""A web server on loopback that answers with given bytes, of HTTP or not."""

import socketserver
import ssl
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager

from flaky import serving


class Answers:
    """``answers[path]``: the bytes of an answer, or what makes its pieces, sent until the client hangs up."""

    def __init__(self, answers: dict[str, bytes | Callable[[], Iterable[bytes]]] | None = None):
        self.answers = answers or {}
        self.requests: Counter[str] = Counter()
        self.sent = 0

    def serve(self, context: ssl.SSLContext | None = None) -> AbstractContextManager[str]:
        """On all of 127.0.0.0/8, with TLS if a context is given."""
        server = _Server(("0.0.0.0", 0), _handler(self))
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        return serving(server)


def ok(body: bytes, *headers: bytes) -> bytes:
    length = b"Content-Length: %d" % len(body)
    return b"\r\n".join([b"HTTP/1.1 200 OK", length, b"Connection: close", *headers, b"", body])


def redirect(to: bytes) -> bytes:
    return b"HTTP/1.1 302 Found\r\nLocation: " + to + b"\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True

    def handle_error(self, request, client_address) -> None:
        """Clients hang up: no news here."""


def _handler(answers: Answers) -> type[socketserver.StreamRequestHandler]:
    class Handler(socketserver.StreamRequestHandler):
        timeout = 30

        def handle(self) -> None:
            path = self.rfile.readline().split(b" ")[1].decode()
            while self.rfile.readline().strip():
                continue
            answers.requests[path] += 1
            answer = answers.answers.get(path, b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
            for piece in [answer] if isinstance(answer, bytes) else answer():
                self.wfile.write(piece)
                answers.sent += len(piece)

    return Handler
