"""Source `scenes`: the synthetic captioned world, served over loopback HTTP so that the real download path runs."""

import io
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from data.sources.candidates import Candidate, Served
from data.sources.scene_world import captions, draw, sample_attributes, scene
from data.sources.settings import ScenesSettings

# `.invalid` never resolves (RFC 2606): the plan's URLs stay the same while the loopback port changes from run to run.
PREFIX = "http://scenes.invalid/"


class ScenesSource:
    """Scene i of world `seed`, for i below `settings.samples`."""

    def __init__(self, settings: ScenesSettings, seed: int) -> None:
        self.settings, self.seed = settings, seed
        self.notes: Counter[str] = Counter()

    def facts(self) -> dict[str, Any]:
        """The settings, which with the seed say everything."""
        return {"kind": "scenes", "settings": self.settings.model_dump(mode="json")}

    def candidates(self) -> Iterator[Candidate]:
        return scenes_candidates(self.settings, self.seed)

    @contextmanager
    def serving(self) -> Iterator[Served]:
        with scenes_server(self.settings) as address:
            yield Served("scenes", address=address)


def scenes_candidates(settings: ScenesSettings, seed: int) -> Iterator[Candidate]:
    """Scene i of world `seed`, for i below `settings.samples`."""
    for index in range(settings.samples):
        world = scene(seed, index, settings.two_object_share)
        records = captions(world, seed, index, settings.captions_per_image)
        yield Candidate(
            source_id=f"scene-{seed}-{index}",
            url=f"{PREFIX}{seed}/{index}.png",
            captions=tuple(record.text for record in records),
            attributes=sample_attributes(world, records),
            license="CC0-1.0 (synthetic)",
        )


@contextmanager
def scenes_server(settings: ScenesSettings) -> Iterator[str]:
    """Serve `/<seed>/<index>.png` on a free loopback port while the context lasts; yields `host:port`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Headers and body go out as two writes; Nagle's algorithm would hold the second back for 40 ms.
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            try:
                seed, name = self.path.strip("/").split("/")
                image = draw(scene(int(seed), int(name.removesuffix(".png")), settings.two_object_share), settings.side)
            except ValueError:
                self.send_error(404)
                return
            out = io.BytesIO()
            image.save(out, "PNG", compress_level=1)
            self.send_response(200)
            self.send_header("Content-Type", "image/png")
            self.send_header("Content-Length", str(out.tell()))
            self.end_headers()
            self.wfile.write(out.getvalue())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
