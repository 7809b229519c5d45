"""How long Cascade takes to start, and where the time goes.

    python benchmarks/startup.py [--runs 5] [--prompt "a red cube"]

Every figure is the wall time of a fresh process, the median of several. `cascade generate` is measured from the call to
the written PNG; beside it stands how much of one run goes into imports, by package (self times of `-X importtime`).
"""

import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import tyro
from environment import environment

ROOT = Path(__file__).resolve().parents[1]
OURS = ("cascade", "pipelines", "conditioning", "weights")
DEFAULT_WEIGHTS = ROOT / "weights" / "toybox" / "cascade.json"


def timed(command: Sequence[str]) -> tuple[float, str]:
    """Wall seconds of one process, and what it wrote to stderr."""
    start = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return seconds, done.stderr


def median(command: Sequence[str], runs: int) -> float:
    """Median wall seconds of `runs` processes, after one that warms the file cache and writes the bytecode."""
    timed(command)
    return statistics.median(timed(command)[0] for _ in range(runs))


def import_seconds(stderr: str) -> dict[str, float]:
    """Self time of imports by top-level package, from `-X importtime`; our four packages count as "cascade"."""
    seconds: dict[str, float] = defaultdict(float)
    for self_us, name in re.findall(r"^import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)$", stderr, re.MULTILINE):
        package = name.split(".")[0]
        if package in OURS:
            package = "cascade"
        elif package in sys.stdlib_module_names:
            package = "standard library"
        seconds[package] += int(self_us) / 1e6
    return seconds


def row(what: str, seconds: float) -> str:
    return f"| {what:<48} | {seconds:7.3f} |"


def main(runs: int = 5, prompt: str = "a red cube") -> None:
    """Print the table.

    Args:
        runs: Processes per figure, of which the median is shown.
        prompt: What the whole run draws.
    """
    python = [sys.executable]
    script = Path(sys.executable).parent / "cascade"
    command = [str(script)] if script.exists() else [*python, "-m", "pipelines.cli"]
    print(f"{environment()}\nmedian of {runs} fresh processes\n")
    print(f"| {'process':<48} | seconds |\n| {'-' * 48} | ------: |")
    print(row("python -c pass", median([*python, "-c", "pass"], runs)))
    print(row("import cascade", median([*python, "-c", "import cascade"], runs)))
    print(row("cascade --help", median([*command, "--help"], runs)))
    print(row("from cascade import Pipeline", median([*python, "-c", "from cascade import Pipeline"], runs)))
    if not DEFAULT_WEIGHTS.exists():
        print("\nNo embedded weights here: `cascade generate` is left out.")
        return
    with tempfile.TemporaryDirectory() as scratch:
        generate = ["generate", prompt, "--seed", "0", "-o", str(Path(scratch) / "out.png")]
        print(row(f"cascade generate {prompt!r}", median([*command, *generate], runs)), flush=True)
        total, log = timed([*python, "-X", "importtime", "-m", "pipelines.cli", *generate])
    imports = import_seconds(log)
    print("\nOne such run, with the import profiler on:\n")
    print(f"| {'part':<48} | seconds |\n| {'-' * 48} | ------: |")
    ranked = sorted(imports.items(), key=lambda item: -item[1])
    for package, seconds in ranked[:8]:
        print(row(f"import {package}", seconds))
    print(row("import everything else", sum(seconds for _, seconds in ranked[8:])))
    print(row("work: weights, text, sampling, PNG", total - sum(imports.values())))
    print(row("whole process", total))


if __name__ == "__main__":
    tyro.cli(main)
