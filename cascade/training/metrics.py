"""What a run says of itself: metrics.jsonl, a line on the terminal, and trackers such as tensorboard."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from cascade.training.distributed import World
from weights.store import atomic_write

FILE = "metrics.jsonl"
Line = dict[str, float | None]
Figures = Mapping[str, float | Tensor]  # a number or one per sample


class Reporter(Protocol):
    """Is told every line of metrics; numbers only, None where one is not finite."""

    def __call__(self, line: Line) -> None: ...


class Means:
    """The mean of every figure since the last `take`, over all processes."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._sums: dict[str, tuple[Any, int]] = {}

    def add(self, figures: Figures) -> None:
        for name, value in figures.items():
            total, count = self._sums.get(name, (0.0, 0))
            if isinstance(value, Tensor):
                self._sums[name] = total + value.detach().double().sum(), count + value.numel()
            else:
                self._sums[name] = total + value, count + 1

    def take(self, device: torch.device) -> dict[str, float]:
        """Forget, and return the means of those that had any value. All processes have to have seen the same names."""
        names = list(self._sums)
        rows = [torch.stack([torch.as_tensor(x, dtype=torch.float64).cpu() for x in self._sums[n]]) for n in names]
        self._sums.clear()
        if not names:
            return {}
        sums = torch.stack(rows)
        if self.world.size > 1:
            sums = self.world.sum(sums.to(device))
        return {name: float(total / count) for name, (total, count) in zip(names, sums.tolist(), strict=True) if count}


class MetricsFile:
    """RUN/metrics.jsonl: a JSON object a line, each with its step."""

    def __init__(self, run: Path) -> None:
        self.path = run / FILE

    def __call__(self, line: Line) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def rewind(self, step: int) -> None:
        """Drop what came after ``step``, which will be written again, and what a kill left half written."""
        if self.path.exists():
            kept = [line for line in self.path.read_text(encoding="utf-8").splitlines() if _step(line) <= step]
            atomic_write(self.path, "".join(line + "\n" for line in kept))


def _step(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


def rounded(values: Mapping[str, float]) -> Line:
    """Six digits are enough; what is no number becomes None, since JSON has no NaN."""
    return {name: _number(value) for name, value in values.items()}


def _number(value: float) -> float | None:
    if isinstance(value, int) or not math.isfinite(value):
        return value if isinstance(value, int) else None
    return float(f"{value:.6g}")


class Console:
    """One line on stderr, renewed in place on a terminal; elsewhere one at most every ``seconds``, and the last."""

    def __init__(self, seconds: float = 30.0) -> None:
        self.seconds, self._last = seconds, -math.inf

    def __call__(self, line: Line) -> None:
        if "loss" not in line:
            self._print("  ".join(f"{name} {_shown(value)}" for name, value in line.items()) + "\n")
        elif sys.stderr.isatty():
            self._print(progress_line(line))
        elif time.monotonic() - self._last > self.seconds or line.get("spent") == 1:
            self._last = time.monotonic()
            self._print(progress_line(line) + "\n")

    def say(self, text: str) -> None:
        """A line of words."""
        self._print(text + "\n")

    def _print(self, text: str) -> None:
        print(f"\r\033[K{text}" if sys.stderr.isatty() else text, end="", file=sys.stderr, flush=True)


def progress_line(line: Line) -> str:
    """step 1,200  38%  412 images/s  loss 0.0312  lr 1.0e-04  grad 0.21  mem 31.2 GB  MFU 44%  left 3 h 12 min"""
    parts = [f"step {line['step']:,}", f"{line['spent'] or 0:.0%}", f"{_shown(line['images_per_second'])} images/s"]
    parts += [f"loss {_shown(line['loss'])}", f"lr {line['lr']:.1e}", f"grad {_shown(line.get('grad_norm'))}"]
    parts.append(f"mem {line['memory_gb']:.1f} GB")
    if line.get("mfu") is not None:
        parts.append(f"MFU {line['mfu']:.0%}")
    if line.get("bad_steps"):
        parts.append(f"bad steps {line['bad_steps']}")
    return "  ".join([*parts, f"left {duration(line['seconds_left'])}"])


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else f"{value:,}"


def duration(seconds: float | None) -> str:
    """4 d 3 h, 3 h 12 min, 12 min, 40 s."""
    if seconds is None:
        return "-"
    minutes, hours, days = seconds / 60, seconds / 3600, seconds / 86400
    if days >= 1:
        return f"{int(days)} d {int(hours % 24)} h"
    if hours >= 1:
        return f"{int(hours)} h {int(minutes % 60)} min"
    return f"{int(minutes)} min" if minutes >= 1 else f"{int(seconds)} s"


def tracker_names(wanted: Sequence[str] | None) -> Sequence[str]:
    """Those wanted; None is tensorboard where it is installed, and else a word that it is not."""
    if wanted is not None:
        return wanted
    if importlib.util.find_spec("tensorboard") is not None:
        return ("tensorboard",)
    print(f"no tensorboard here (pip install tensorboard): the metrics are in {FILE} alone", file=sys.stderr)
    return ()


def trackers(names: Sequence[str], run: Path, config: Mapping[str, Any]) -> list[Reporter]:
    """The reporters of accelerate's trackers ("tensorboard", "wandb", "aim", ...), for the main process alone.

    Raises ValueError for an unknown one, or one whose package is not installed.
    """
    if not names:
        return []
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    PartialState()  # the trackers ask it whether they are in the main process
    available = [str(name) for name in get_available_trackers()]
    made = []
    for name in names:
        if name not in available:
            known = ", ".join(sorted(str(kind) for kind in LOGGER_TYPE_TO_CLASS))
            raise ValueError(f"there is no tracker {name!r} here: it must be one of {known}, and be installed")
        kind = LOGGER_TYPE_TO_CLASS[name]
        folder = {"logging_dir": str(run)} if kind.requires_logging_directory else {}
        tracker = kind(run.name if name != "tensorboard" else "tensorboard", **folder)
        tracker.start() if hasattr(tracker, "start") else None
        tracker.store_init_configuration(dict(_flat(config)))
        made.append(_Tracked(tracker))
    return made


class _Tracked:
    def __init__(self, tracker: Any) -> None:
        self.tracker = tracker

    def __call__(self, line: Line) -> None:
        values = {name: value for name, value in line.items() if value is not None and name != "step"}
        self.tracker.log(values, step=int(line["step"] or 0))


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """{"a": {"b": 1}} as ("a.b", 1): trackers take plain values."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            plain = value if isinstance(value, int | float | str | bool) else json.dumps(value)
            yield f"{prefix}{name}", plain


# Dense bf16 operations a second of tensor cores, from the vendors' data sheets; the first name that fits counts.
PEAK_FLOPS = {
    "B200": 2.25e15,
    "GH200": 989e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "A40": 150e12,
    "A10": 125e12,
    "RTX 5090": 209e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}


def peak_flops(device: torch.device) -> float | None:
    """Of a known GPU, else None."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((flops for known, flops in PEAK_FLOPS.items() if re.search(rf"\b{known}\b", name)), None)


def memory_gb(device: torch.device) -> float:
    """The most that this process has held so far: on its GPU, else in all."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    import resource

    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale / 1e9
