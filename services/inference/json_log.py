"""Log lines as JSON, one object a line, on standard error."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

_CARRIED = ("request_id", "code", "reason")


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line.update({name: getattr(record, name) for name in _CARRIED if hasattr(record, name)})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def log_to_stderr() -> None:
    """Sends every record of level INFO and above to standard error as JSON."""
    lines = logging.StreamHandler()
    lines.setFormatter(_Lines())
    logging.basicConfig(level=logging.INFO, handlers=[lines], force=True)
