"""What a figure was measured on; environments for what it is compared with."""

import os
import platform
import re
import subprocess
import venv
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]


def environment() -> str:
    """Date, hardware, versions and commit, one per line."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and (named := re.search(r"model name\s*: (.+)", cpuinfo.read_text())):
        model = named[1]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "numpy", "tyro"))
    git = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return "\n".join(
        [
            date.today().isoformat(),
            f"{model}, {cores} cores, {device}",
            f"Python {platform.python_version()}, {versions}",
            f"commit {git.stdout.strip() or '?'}",
        ]
    )


def other_environment(folder: Path, *packages: str) -> Path:
    """The Python of an environment in ``folder`` for what must not be in ours; where there is none, it is made, with
    the versions that Cascade is tested with.
    """
    python = folder / "bin" / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
        install = [str(python), "-m", "pip", "install", "--quiet", "-c", str(ROOT / "constraints.txt"), *packages]
        subprocess.run(install, check=True)
    return python
