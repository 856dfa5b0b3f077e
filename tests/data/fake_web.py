"""A loopback web of pictures, parts of which can be broken and mended."""

import io
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image


class Web:
    """A server of `/<n>.png`; `broken` maps n to a status, `broken_paths` answer 503; `asked` counts requests by n; after `limit` answers all are 500."""

    def __init__(self) -> None:
        self.broken: dict[int, int] = {}
        self.broken_paths: set[str] = set()
        self.asked: Counter[int] = Counter()
        self.limit: int | None = None
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                n = int(self.path[1:].split(".")[0])
                web.asked[n] += 1
                if self.path in web.broken_paths:
                    self.send_error(503)
                    return
                if n in web.broken or (web.limit is not None and web.asked.total() > web.limit):
                    self.send_error(web.broken.get(n, 500))
                    return
                body = picture(n)
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self.thread.start()
        self.address = f"127.0.0.1:{self.server.server_port}"

    def __enter__(self) -> "Web":
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def picture(n: int) -> bytes:
    """Image n: its own noise, 24 x 20."""
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(n).integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(out, "PNG")
    return out.getvalue()
