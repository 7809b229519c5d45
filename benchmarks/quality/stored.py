"""Results on disk: one JSON file a measurement, each with what it was measured on."""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

from benchmarks.environment import environment

FOLDER = Path("docs/quality")
IMAGES = Path("docs/images")


def store(name: str, figures: dict[str, Any]) -> None:
    """Write docs/quality/NAME.json: the figures under a header of command, date, commit, versions and hardware."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["python", "-m", "benchmarks.quality", *sys.argv[1:]])
    record = {"command": command, "environment": environment(), **figures}
    (FOLDER / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")


def load(name: str) -> dict[str, Any] | None:
    """What `store` wrote; None if that was not measured."""
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None
