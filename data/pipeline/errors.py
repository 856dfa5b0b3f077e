"""The error tree. Everything here is a mistake the user can mend: front doors print it as one line, without a traceback.

ToolkitError
|- UserError       wrong config, missing input, a refused mix: exit status 2
|- StageFailed     some parts of a stage could not be made, the others stand: exit status 1
`- DiskFull        no space left; what is complete stays complete: exit status 1

A script that acts on an error compares its `code`, which the front door prints behind the line: `error: ... [stale]`.
"""

from enum import StrEnum


class Code(StrEnum):
    """What a script could do something about, by name."""

    USAGE = "usage"  # the command line or the config says what is not allowed
    MISSING = "missing"  # an artifact that has to be made first
    STALE = "stale"  # an artifact that has to be made again
    OTHER_CONFIG = "other_config"  # the run folder, or an artifact in it, was made with other settings
    OTHER_VERSION = "other_version"  # made by a version of the toolkit that this one does not read
    BUSY = "busy"  # another command works on the same artifact
    INPUT_CHANGED = "input_changed"  # the user's own files differ from those that were used
    FOREIGN = "foreign"  # of another CLIP, another dataset, another study
    DAMAGED = "damaged"  # a file of the run that cannot be read as what it should be
    NOTHING_STORED = "nothing_stored"  # no image came out of the download
    COLLAPSED = "success_collapsed"  # hardly any download succeeds any more
    EMPTY = "empty"  # a selection that keeps nothing
    PARTS_FAILED = "parts_failed"  # some parts could not be made, the others stand
    SCHEDULER = "scheduler"  # no Dask scheduler or worker answers
    DISK_FULL = "disk_full"


class ToolkitError(Exception):
    """Base of every error that a front door prints as one line."""

    exit_status = 1
    default = Code.USAGE

    def __init__(self, message: str, code: Code | None = None) -> None:
        super().__init__(message)
        self.code = code or self.default

    def __reduce__(self) -> tuple[object, ...]:
        # Errors travel from workers; Exception's own pickling would lose the code.
        return type(self), (str(self), self.code)


class UserError(ToolkitError):
    """What was wrong, what is allowed, what was given, what to do next."""

    exit_status = 2


class StageFailed(ToolkitError):
    """At least one part of a stage failed; the message names the parts."""

    default = Code.PARTS_FAILED


class DiskFull(ToolkitError):
    """The disk ran out of space."""

    default = Code.DISK_FULL
