"""The error tree. Everything here is a mistake the user can mend: front doors print it as one line, without a traceback.

ToolkitError
|- UserError       wrong config, missing input, a refused mix: exit status 2
|- StageFailed     some parts of a stage could not be made, the others stand: exit status 1
`- DiskFull        no space left; what is complete stays complete: exit status 1
"""


class ToolkitError(Exception):
    """Base of every error that a front door prints as one line."""

    exit_status = 1


class UserError(ToolkitError):
    """What was wrong, what is allowed, what was given, what to do next."""

    exit_status = 2


class StageFailed(ToolkitError):
    """At least one part of a stage failed; the message names the parts."""


class DiskFull(ToolkitError):
    """The disk ran out of space."""
