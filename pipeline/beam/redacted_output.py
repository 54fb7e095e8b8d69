"""Take secrets out of what a worker process logs, prints and reports of exceptions.

The driver redacts what it writes itself; but a worker's lines also go to the logs of a cluster, which others read.
"""

import logging
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import Any

from queries.redact import redact


def redact_output() -> None:
    """Redact log messages and tracebacks of this process from here on, those that Beam sends to the driver included."""
    logging.setLogRecordFactory(_LogRecord)
    traceback.TracebackException.format = _format  # type: ignore[method-assign, assignment]
    sys.excepthook = traceback.print_exception  # Python's own would not come by here
    threading.excepthook = _print_exception_of_thread


class _LogRecord(logging.LogRecord):
    def getMessage(self) -> str:
        return redact(super().getMessage())


_format_whole = traceback.TracebackException.format


def _format(self: traceback.TracebackException, **options: Any) -> Iterator[str]:
    yield from map(redact, _format_whole(self, **options))


def _print_exception_of_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None and args.exc_type is not SystemExit:
        traceback.print_exception(args.exc_value)
