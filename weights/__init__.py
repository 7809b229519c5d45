"""Checkpoints: JSON and named tensors, on disk and on the hub. A leaf: builds no networks, runs no stored code."""

from weights.hub import EMBEDDED, EMBEDDED_DETECTOR, resolve
from weights.store import (
    StageFiles,
    WeightsError,
    atomic_write,
    check_tensors,
    read_legacy,
    read_manifest,
    read_stage,
    save_cascade,
)

__all__ = [
    "EMBEDDED",
    "EMBEDDED_DETECTOR",
    "StageFiles",
    "WeightsError",
    "atomic_write",
    "check_tensors",
    "read_legacy",
    "read_manifest",
    "read_stage",
    "resolve",
    "save_cascade",
]
