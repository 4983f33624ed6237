"""Log records as JSON lines on standard error."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime


class JsonLines(logging.Formatter):
    """One record a line: time, level, logger, message, and the traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """The line. Line feeds in a message are escaped, so no message forges another."""
        line = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def log_to_stderr() -> None:
    """Sends everything from `info` up to standard error as JSON lines."""
    output = logging.StreamHandler()
    output.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[output], force=True)
