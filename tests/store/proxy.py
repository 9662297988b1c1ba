"""A real TCP proxy in front of an S3 server, which loses requests and replies as a test orders.

It forwards bytes and understands only the method of a request. `faults` are used up in order, one for each PUT; after that it
just forwards. `meanwhile` is called when a fault strikes (after the server has answered, if the request reached it): there a
rival may write."""

from __future__ import annotations

import contextlib
import enum
import socket
import threading
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit


class Fault(enum.Enum):
    LOSE_REQUEST = "the request never reaches the server"
    LOSE_REPLY = "the server commits, the connection breaks before its reply"
    SAY_503 = "the server commits, the reply is a 503 of something in between"


REPLY_503 = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Proxy:
    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        self._upstream = (parts.hostname, parts.port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint_url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.faults: list[Fault] = []
        self.meanwhile: Callable[[], None] = lambda: None
        self.puts = 0
        self._lock = threading.Lock()

    def serve(self) -> None:
        with contextlib.suppress(OSError):  # the listener was closed: the test is over
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._handle, args=(client,), daemon=True).start()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _handle(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), socket.create_connection(self._upstream) as server:
            pending: list[Fault] = []
            replies = threading.Thread(target=self._reply, args=(server, client, pending), daemon=True)
            replies.start()
            while data := client.recv(65536):
                if data.startswith(b"PUT ") and (fault := self._next_fault()):
                    if fault is Fault.LOSE_REQUEST:
                        self.meanwhile()
                        break
                    pending.append(fault)
                server.sendall(data)
            _hang_up(client, server)
            replies.join()

    def _reply(self, server: socket.socket, client: socket.socket, pending: list[Fault]) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                if pending and not data.startswith(b"HTTP/1.1 100"):
                    self.meanwhile()
                    if pending[0] is Fault.SAY_503:
                        client.sendall(REPLY_503)
                    break
                client.sendall(data)
        _hang_up(client, server)

    def _next_fault(self) -> Fault | None:
        with self._lock:
            self.puts += 1
            return self.faults.pop(0) if self.faults else None


def _hang_up(*ends: socket.socket) -> None:
    for end in ends:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def run_proxy(upstream: str) -> Iterator[Proxy]:
    proxy = Proxy(upstream)
    threading.Thread(target=proxy.serve, daemon=True).start()
    try:
        yield proxy
    finally:
        proxy.close()
