"""Who made an artifact, with what, when: recorded, never hashed."""

import platform
import subprocess
import sys
import time
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

RECORDED_LIBRARIES = ("torch", "open_clip_torch", "img2dataset", "diffusers", "pyarrow", "pillow", "numpy")


def provenance() -> dict[str, Any]:
    """Who made this, with what, when: recorded, never hashed."""
    libraries = {}
    for name in RECORDED_LIBRARIES:
        try:
            libraries[name] = installed_version(name)
        except ImportError:
            continue
    return {
        "libraries": libraries, "python": platform.python_version(), "host": platform.node(), "machine": platform.machine(),
        "command": " ".join(sys.argv), "commit": git_commit(), "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }  # fmt: skip


def git_commit() -> str:
    """The checkout's commit, with `-dirty` where files differ from it, or "unknown"."""
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        here = Path(__file__).resolve().parent
        return subprocess.run(command, cwd=here, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
