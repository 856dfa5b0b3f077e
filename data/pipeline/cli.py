"""The shape that all front doors share: `python -m <room> <command> --config FILE [section.key=value ...]`."""

import argparse
import errno
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from data.pipeline.config import Config, load_config
from data.pipeline.cost import measured
from data.pipeline.errors import Code, ToolkitError, UserError
from data.pipeline.run import Run


@dataclass(frozen=True)
class Command:
    """`run(config, arguments)` does the work and prints where it wrote; `options` adds the command's own arguments."""

    name: str
    help: str
    run: Callable[[Config, argparse.Namespace], Any]
    options: Callable[[argparse.ArgumentParser], None] | None = None
    costs: bool = True  # whether what it takes is part of what the run costs


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise UserError(f"{self.prog}: {message}")


def front_door(room: str, description: str, commands: Sequence[Command], argv: Sequence[str] | None = None) -> int:
    """Parse, call, and turn a user's mistake into one line on stderr. Returns the exit status."""
    try:
        arguments, command = _parse(room, description, commands, argv)
        config = load_config(arguments.config, arguments.overrides)
        with measured(Run(config).logs, f"{room} {command.name}") if command.costs else nullcontext():
            command.run(config, arguments)
        return 0
    except ToolkitError as error:
        print(f"error: {' '.join(str(error).split())} [{error.code}]", file=sys.stderr)
        return error.exit_status
    except BrokenPipeError:
        # The reader of our output went away (`| head`); say nothing more, to nobody.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.errno is None:  # not the operating system's word about a file, but a library's own error
            raise
        full = (
            "; what is complete is kept: free some space and run the same command again"
            if error.errno == errno.ENOSPC
            else ""
        )
        code = f" [{Code.DISK_FULL}]" if full else ""
        print(f"error: {error.strerror}: {error.filename or 'while writing'}{full}{code}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; what is complete is kept, the same command goes on from there", file=sys.stderr)
        return 130


def _parse(
    room: str, description: str, commands: Sequence[Command], argv: Sequence[str] | None
) -> tuple[argparse.Namespace, Command]:
    parser = _Parser(prog=f"python -m {room}", description=description)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="command", parser_class=_Parser)
    for command in commands:
        sub = subparsers.add_parser(command.name, help=command.help, description=command.help)
        sub.add_argument("--config", required=True, metavar="FILE", help="the run's TOML file, e.g. configs/demo.toml")
        if command.options:
            command.options(sub)
        sub.add_argument("overrides", nargs="*", metavar="section.key=value", help="settings that override the file's")
    arguments = parser.parse_args(argv)
    return arguments, next(c for c in commands if c.name == arguments.command)
