"""The console script `wit`: `run_command`. `EXIT_CODES` says how a command ended and whether running it again helps."""

import argparse
import atexit
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from types import FrameType
from typing import Any

from dedup.errors import DedupError
from pipeline.cli import annotate as cli_annotate
from pipeline.cli import build as cli_build
from pipeline.cli import card as cli_card
from pipeline.cli import consent as cli_consent
from pipeline.cli import demo as cli_demo
from pipeline.cli import diff as cli_diff
from pipeline.cli import doctor as cli_doctor
from pipeline.cli import forecast as cli_forecast
from pipeline.cli import gc as cli_gc
from pipeline.cli import merge as cli_merge
from pipeline.cli import metrics as cli_metrics
from pipeline.cli import overlap as cli_overlap
from pipeline.cli import peek as cli_peek
from pipeline.cli import publish as cli_publish
from pipeline.cli import report as cli_report
from pipeline.cli import status as cli_status
from pipeline.cli import takedown as cli_takedown
from pipeline.cli import train as cli_train
from pipeline.cli import verify as cli_verify
from pipeline.cli import why as cli_why
from pipeline.errors import EXIT_CODES, UserError, system_error
from pipeline.project import code_version
from queries.errors import InputError
from queries.redact import redact

# Modules that are slow to import (Beam, Arrow, rich) are imported where a command needs them, so that `--help` and a
# config error are quick.
_GROUPS = {
    "queries": "make, check and explain allowlists",
    "sources": "look at the sources of a config before a build",
    "evals": "list and index evaluation sets",
}
"""Commands with subcommands, each in the module of that name, and their `--help` texts."""

_INTERRUPTED = 128
"""Added to the number of a signal to make an exit code, as shells do."""

_EXAMPLES = """\
examples:
  wit demo                                         run everything offline, on a simulated web
  wit queries import words.txt --out queries.parquet
  wit build -c wit.toml                            run it again to resume
  wit build -c wit.toml --to plan                  stop before the first network request
  wit build -c wit.toml --runner SparkRunner --spark_master_url spark://host:7077
"""


def run_command() -> None:
    """Run `main` and end this process; after an interruption at once, without waiting for threads.

    Beam's threads wait for workers, also for those that the interruption has ended.
    """
    code = main()
    if code > _INTERRUPTED:
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # a closed pipe
                stream.flush()
        os._exit(code)
    sys.exit(code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code. Errors that a user can fix are one line on stderr."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: a name or caption may have any character
    logging.getLogger().addFilter(_is_not_about_apitools)
    _show_warnings()
    arguments = list(sys.argv[1:] if argv is None else argv)
    args, beam_args = _parse(arguments)
    is_json = getattr(args, "log_format", "text") == "json"
    try:
        args.beam_args = beam_args
        with _signals_like_ctrl_c() as received:
            return int(args.func(args))
    except (UserError, InputError, DedupError) as error:
        _print_error(str(error), error.exit_code, is_json)
        return error.exit_code
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except (OSError, MemoryError) as error:  # its message names the file; all other exceptions are bugs
        failure = system_error(error)
        _print_error(str(failure), failure.exit_code, is_json)
        return failure.exit_code
    except KeyboardInterrupt:
        from pipeline.beam.fork_server import end_server
        from pipeline.private_folder import remove_leftovers

        end_server()
        remove_leftovers()
        print("wit: stopped; run the same command again to resume", file=sys.stderr)
        return _INTERRUPTED + (received[0] if received else signal.SIGINT)


def _print_error(message: str, exit_code: int, is_json: bool) -> None:
    if is_json:
        from pipeline.engine.json_log import json_line

        print(json_line("error", message, exit_code=exit_code), file=sys.stderr)
    else:
        print(f"wit: {message}", file=sys.stderr)


@contextmanager
def _signals_like_ctrl_c() -> Iterator[list[int]]:
    """Let SIGTERM and SIGHUP end a command like Ctrl-C, unless they are ignored (nohup); yield the signal received."""
    received: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        received.append(number)
        raise KeyboardInterrupt

    is_main = threading.current_thread() is threading.main_thread()
    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if is_main and signal.getsignal(n) == signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, stop)
    try:
        yield received
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _show_warnings() -> None:
    """Print warnings of the pipeline like other messages, each once."""
    handler = logging.StreamHandler()
    handler.setFormatter(_WithoutSecrets("wit: %(message)s"))
    handler.addFilter(_Once())
    handler.setLevel(logging.WARNING)
    ours = logging.getLogger("pipeline")
    ours.handlers[:] = [handler]
    ours.propagate = False


class _WithoutSecrets(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


class _Once(logging.Filter):
    def __init__(self) -> None:
        super().__init__()
        self._seen = set[str]()

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        is_new = message not in self._seen
        self._seen.add(message)
        return is_new


def _is_not_about_apitools(record: logging.LogRecord) -> bool:
    """Drop a warning about optional Google packages that importing Beam logs."""
    return "apitools" not in record.getMessage()


def _parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Split our arguments from Beam's options, which only the commands that run Beam accept."""
    parser = _parser(arguments[:1])
    own, after = arguments, []
    if "--" in arguments:
        cut = arguments.index("--")
        own, after = arguments[:cut], arguments[cut + 1 :]
    args, unknown = parser.parse_known_args(own)
    if (unknown or after) and not getattr(args, "takes_beam_options", False):
        parser.error(f"unrecognised arguments: {' '.join([*unknown, *after])}")
    return args, [*unknown, *after]


def _parser(first: Sequence[str]) -> argparse.ArgumentParser:
    """Return the parser of all commands; `first` is the first argument, if there is any."""
    parser = argparse.ArgumentParser(
        prog="wit",
        description="Build a CLIP-style image-text dataset: crawl, balance, deduplicate, measure overlap, train.",
        epilog=_EXAMPLES + _exit_codes(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_PrintVersion, help="print the version and exit")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    cli_demo.add_parser(commands)
    _add_group("queries", commands, first)
    _add_group("sources", commands, first)
    cli_build.add_parser(commands)
    cli_doctor.add_parser(commands)
    cli_forecast.add_parser(commands)
    cli_status.add_parser(commands)
    cli_verify.add_parser(commands)
    _add_group("evals", commands, first)
    cli_report.add_parser(commands)
    cli_peek.add_parser(commands)
    cli_card.add_parser(commands)
    cli_why.add_parser(commands)
    cli_annotate.add_parser(commands)
    cli_merge.add_parser(commands)
    cli_publish.add_parser(commands)
    cli_metrics.add_parser(commands)
    cli_diff.add_parser(commands)
    cli_gc.add_parser(commands)
    cli_consent.add_parser(commands)
    cli_takedown.add_parser(commands)
    cli_overlap.add_parser(commands)
    cli_train.add_parser(commands)
    return parser


def _exit_codes() -> str:
    codes, meanings = (max(len(row[column]) for row in EXIT_CODES) for column in (0, 1))
    lines = [f"  {code:<{codes}}  {meaning:<{meanings}}  {again}" for code, meaning, again in EXIT_CODES]
    return "\n".join(["", "exit codes, and whether running the same command again helps:", *lines, ""])


class _PrintVersion(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, **kwargs)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(f"wit {code_version()}")
        parser.exit()


def _add_group(
    name: str, commands: "argparse._SubParsersAction[argparse.ArgumentParser]", first: Sequence[str]
) -> None:
    if list(first) == [name]:
        import_module(f"pipeline.cli.{name}").add_parser(commands)
    else:
        commands.add_parser(name, help=_GROUPS[name])
