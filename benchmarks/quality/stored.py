"""Results on disk: one JSON file a measurement, each with what it was measured on."""

import hashlib
import json
import shlex
import sys
from pathlib import Path
from typing import Any

from benchmarks.environment import environment
from pipelines.evaluation.detector.network import CONFIG, TENSORS
from pipelines.evaluation.detector.network import FOLDER as DETECTOR
from pipelines.evaluation.judge import RULES

FOLDER = Path("docs/quality")
IMAGES = Path("docs/images")


def store(name: str, figures: dict[str, Any]) -> None:
    """Write docs/quality/NAME.json: figures under a header of command, date, commit, versions, hardware, detector."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    command = shlex.join(["python", "-m", "benchmarks.quality", *sys.argv[1:]])
    record = {"command": command, "environment": environment(), "detector": detector(), **figures}
    (FOLDER / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")


def load(name: str) -> dict[str, Any] | None:
    """What `store` wrote; None if that was not measured."""
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def detector() -> str:
    """The beginning of the SHA-256 of the detector's files, and the version of the rules that it judges by."""
    files = b"".join((DETECTOR / name).read_bytes() for name in (CONFIG, TENSORS))
    return f"{hashlib.sha256(files).hexdigest()[:12]}, rules {RULES}"
