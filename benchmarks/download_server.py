"""A lean HTTP server for download benchmarks: a folder's files from memory, over loopback, in a process of its own.

    python -m benchmarks.download_server FOLDER

prints its port and serves `/<name>` with any query until its stdin closes. Connections are kept alive unless the client wishes
otherwise. `/-/served` says how many files it has served.
"""

import asyncio
import sys
from pathlib import Path


def main() -> None:
    files = {path.name.encode(): path.read_bytes() for path in Path(sys.argv[1]).iterdir()}
    asyncio.run(_serve({name: _response(content) for name, content in files.items()}))


def _response(content: bytes, kind: bytes = b"image/jpeg") -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s" % (kind, len(content), content)


async def _serve(responses: dict[bytes, bytes]) -> None:
    loop = asyncio.get_running_loop()
    served = 0

    class Connection(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            self.transport, self.buffer = transport, b""

        def data_received(self, data: bytes) -> None:
            nonlocal served
            self.buffer += data
            while b"\r\n\r\n" in self.buffer:
                request, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
                name = request.split(b" ", 2)[1][1:].partition(b"?")[0]
                if name == b"-/served":
                    self.transport.write(_response(b"%d" % served, b"text/plain"))
                else:
                    served += 1
                    self.transport.write(responses.get(name, b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"))
                if b"connection: close" in request.lower():
                    self.transport.close()

    server = await loop.create_server(Connection, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    main()
