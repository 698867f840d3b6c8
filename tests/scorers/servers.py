"""Real servers on this machine, in a thread each."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ssl import SSLContext
from typing import Any

TOKEN = "tok-3f9a/Zq+7"
VARIABLE = "PERCENT_RAY_TEST_TOKEN"

Answer = Callable[[Any, bytes], None]
"""Answers one POST: a BaseHTTPRequestHandler, and the body that was sent."""


def reply(body: bytes | str, status: int = 200, **headers: str) -> Answer:
    """That body, always."""
    content = body.encode() if isinstance(body, str) else body

    def answer(handler: Any, asked: bytes) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(content)

    return answer


@contextmanager
def serve(answer: Answer, tls: SSLContext | None = None) -> Iterator[str]:
    """The URL of a server that answers every POST so."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            asked = self.rfile.read(int(self.headers["Content-Length"]))
            # A client that has given up.
            try:
                answer(self, asked)
            except OSError:
                self.close_connection = True

        def log_message(self, format, *args):
            """Not into the tests' output."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request, client_address):
            """A handshake that the client has refused."""

    server = Server(("127.0.0.1", 0), Handler)
    if tls:
        server.socket = tls.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
