"""Log lines for programs: one JSON object a line, with the time, the host and the process, and no secret."""

import datetime as dt
import json
import logging
import os
import socket

from queries.redact import redact


def json_line(level: str, message: str, **fields: object) -> str:
    """Return one line of a log; fields that are None are left out."""
    line = {
        "time": dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds"),
        "level": level,
        "message": message,
        "host": socket.gethostname(),
        "process": os.getpid(),
    }
    return redact(json.dumps(line | {name: value for name, value in fields.items() if value is not None}, default=str))


class JsonFormatter(logging.Formatter):
    """Formats records of `logging` like `json_line`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one line."""
        return json_line(record.levelname.lower(), record.getMessage(), logger=record.name)
