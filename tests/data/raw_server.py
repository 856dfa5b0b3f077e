"""A loopback server that sends exactly the bytes a test wants, so that it can misbehave in every way."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Answer = bytes | Callable[[socket.socket], object]  # sent as it is; or called, after which the connection is closed


class RawServer:
    """Answers by path (the query not counted); keeps the heads of all requests and counts the connections."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers = answers
        self.heads: list[str] = []
        self.times: list[float] = []
        self.connections = 0
        self.stopped = False
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.authority = f"127.0.0.1:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def url(self, path: str) -> str:
        return f"http://{self.authority}{path}"

    def paths(self) -> list[str]:
        return [head.split()[1] for head in self.heads]

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        waiting = b""
        try:
            while True:
                while b"\r\n\r\n" not in waiting:
                    received = connection.recv(65536)
                    if not received:
                        return
                    waiting += received
                head, waiting = waiting.split(b"\r\n\r\n", 1)
                self.heads.append(head.decode("latin-1"))
                self.times.append(time.monotonic())
                answer = self.answers.get(self.heads[-1].split()[1].partition("?")[0], reply(b"", "404 Not Found"))
                if isinstance(answer, list):
                    answer = answer.pop(0) if len(answer) > 1 else answer[0]
                if not isinstance(answer, bytes):
                    answer(connection)
                    return
                connection.sendall(answer)
        except OSError:
            return
        finally:
            connection.close()


def reply(body: bytes = b"image bytes", status: str = "200 OK", **headers: object) -> bytes:
    """An answer whose headers are right unless others are given; `Content_Length=None` leaves one out."""
    fields = {"Content-Length": len(body)} | {name.replace("_", "-"): value for name, value in headers.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items() if value is not None)
    return f"HTTP/1.1 {status}\r\n{lines}\r\n".encode("latin-1") + body


def drip(start: bytes, piece: bytes = b".", pause: float = 0.05) -> Callable[[socket.socket], None]:
    """`start`, and then piece after piece, until the other side has had enough."""

    def answer(connection: socket.socket) -> None:
        connection.sendall(start)
        for _ in range(1_000_000):
            connection.sendall(piece)
            time.sleep(pause)

    return answer


@contextmanager
def raw_server(answers: dict[str, Any]) -> Iterator[RawServer]:
    server = RawServer(answers)
    try:
        yield server
    finally:
        server.listener.shutdown(socket.SHUT_RDWR)
        server.listener.close()
