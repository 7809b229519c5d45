"""One folder is one cascade: cascade.json, and for every stage a folder with config.json and model.safetensors.

Reading is strict and runs no stored code; writing is all or nothing.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = 1
MANIFEST = "cascade.json"
CONFIG = "config.json"
TENSORS = "model.safetensors"

# What a manifest says, besides its format and its stages: where the text encoder is (null: a cascade without text),
# under which licence the weights are, and how they were made.
_MANIFEST_KEYS: dict[str, tuple[type, ...]] = {
    "text_encoder": (dict, type(None)),
    "licence": (str,),
    "provenance": (dict,),
}
_STAGE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # a folder's name, which leads nowhere else


class WeightsError(ValueError):
    """Stored weights are missing, damaged, or not what was expected. The message names the file and the remedy."""


@dataclass(frozen=True)
class StageFiles:
    """What is stored of a stage: its configuration, and its tensors by name."""

    config: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


def save_cascade(
    folder: str | Path,
    manifest: Mapping[str, Any],
    stages: Mapping[str, StageFiles],
    extra: Callable[[Path], None] | None = None,
) -> None:
    """Write a cascade, or replace one, all or nothing.

    manifest: text_encoder, licence, provenance; format and stages are added. stages: by folder name, in the cascade's
    order. extra: writes whatever else belongs to it (text_encoder/, tokenizer/, README.md) into the folder it is
    given.

    All is written into a temporary folder beside the final one and put in its place at the end, so a failure at any
    time leaves an earlier cascade as it was. Raises WeightsError if the folder holds something that is no cascade.
    """
    folder = Path(folder).absolute()
    whole = {"format": FORMAT, "stages": list(stages), **manifest}
    _check_manifest(whole, f"the manifest for {folder}")
    if folder.exists() and not folder.is_dir():
        raise WeightsError(f"{folder} is a file; choose another place for the cascade")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / MANIFEST).is_file():
        raise WeightsError(f"{folder} is not empty and is no cascade (it has no {MANIFEST}); choose another folder")
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = folder.parent / f".{folder.name}.saving"
    shutil.rmtree(fresh, ignore_errors=True)  # of a save that was killed
    fresh.mkdir()
    try:
        for name, stage in stages.items():
            _write_stage(fresh / name, stage)
        if extra is not None:
            extra(fresh)
        (fresh / MANIFEST).write_text(_to_json(whole, fresh / MANIFEST), encoding="utf-8")
        _settle(fresh, mode=(fresh / MANIFEST).stat().st_mode)
        _put_in_place(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The checked contents of cascade.json. Raises WeightsError."""
    folder = Path(folder)
    path = folder / MANIFEST
    if not folder.is_dir():
        previous = _previous(folder.absolute())
        hint = f"; an interrupted save left {previous}: rename it back" if previous.is_dir() else "; check the path"
        raise WeightsError(f"no folder {folder}{hint}")
    if not path.is_file():
        raise WeightsError(f"no {MANIFEST} in {folder}: expected the folder of a cascade, as save_pretrained writes it")
    manifest = read_json(path)
    _check_manifest(manifest, str(path))
    return manifest


def read_config(folder: str | Path, name: str) -> dict[str, Any]:
    """The configuration of a stage, without its tensors. Raises WeightsError."""
    names = read_manifest(folder)["stages"]
    if name not in names:
        raise WeightsError(f"{Path(folder) / MANIFEST} names no stage {name!r}; it has {', '.join(names)}")
    stage = Path(folder) / name
    for path in (stage, stage / CONFIG, stage / TENSORS):
        if not path.exists():
            raise WeightsError(f"{path} is missing: the copy of this cascade is incomplete; copy or download it again")
    return read_json(stage / CONFIG)


def read_stage(folder: str | Path, name: str) -> StageFiles:
    """The configuration of a stage, and its tensors on the CPU in their stored type. Raises WeightsError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    config = read_config(folder, name)
    stage = Path(folder) / name
    try:
        tensors = load_file(stage / TENSORS)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{stage / TENSORS} is truncated or damaged ({error}); copy or download it again") from error
    return StageFiles(config, tensors)


def read_legacy(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a legacy `.bin`, by torch's weights-only unpickler, which runs no code. They are views of the
    file, unless that is older than torch 1.6, and read when they are first needed. Raises WeightsError.
    """
    import torch

    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"no file {path}; check the path")
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except (UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise WeightsError(
            f"{path} holds more than tensors, or is damaged ({str(error).splitlines()[0]}); it was not loaded. "
            "Download it again, or ask its author for safetensors"
        ) from error
    if not isinstance(tensors, dict) or not all(isinstance(t, torch.Tensor) for t in tensors.values()):
        raise WeightsError(f"{path} holds no table of named tensors; expected the state dict of a network")
    return tensors


def check_tensors(
    expected: Mapping[str, Sequence[int]], found: Mapping[str, Tensor | Sequence[int]], where: str | Path
) -> None:
    """Compare stored tensors with what a network expects: names and shapes. Raises WeightsError naming what differs."""
    shapes = {name: tuple(getattr(tensor, "shape", tensor)) for name, tensor in found.items()}
    wanted = {name: tuple(shape) for name, shape in expected.items()}
    problems = {
        "missing": [name for name in wanted if name not in shapes],
        "unexpected": [name for name in shapes if name not in wanted],
        "misshapen": [
            f"{name} {shapes[name]}, expected {shape}"
            for name, shape in wanted.items()
            if name in shapes and shapes[name] != shape
        ],
    }
    lines = [
        f"  {len(names)} {kind}: {'; '.join(names[:10])}{' ...' if len(names) > 10 else ''}"
        for kind, names in problems.items()
        if names
    ]
    if lines:
        raise WeightsError("\n".join([f"the tensors of {where} do not fit its configuration:", *lines]))


def atomic_write(path: str | Path, data: bytes | str) -> None:
    """Write a file so that whoever reads it finds the old contents or the new, never a part. Text is UTF-8."""
    path = Path(path)
    fresh = path.with_name(f".{path.name}.{os.getpid()}.saving")
    try:
        with open(fresh, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
    _sync(path.parent)


def _check_manifest(manifest: Mapping[str, Any], where: str) -> None:
    if manifest.get("format") != FORMAT:
        raise WeightsError(
            f"{where} has format {manifest.get('format')!r} and this version reads format {FORMAT}; "
            "update cascade-t2i, or use the version that wrote it"
        )
    unknown = [key for key in manifest if key not in ("format", "stages", *_MANIFEST_KEYS)]
    if unknown:
        known = ", ".join(["format", "stages", *_MANIFEST_KEYS])
        raise WeightsError(f"{where} has the unknown keys {unknown}; expected {known}")
    for key, types in _MANIFEST_KEYS.items():
        if key not in manifest:
            raise WeightsError(f"{where} lacks {key!r}")
        if not isinstance(manifest[key], types):
            allowed = " or ".join({dict: "an object", str: "a string"}.get(t, "null") for t in types)
            raise WeightsError(f"{where} has {key} = {manifest[key]!r}; expected {allowed}")
    stages = manifest.get("stages")
    if not isinstance(stages, list) or not stages or not all(isinstance(name, str) for name in stages):
        raise WeightsError(f"{where} has stages = {stages!r}; expected a list of at least one folder name")
    for name in stages:
        if not _STAGE_NAME.fullmatch(name) or stages.count(name) > 1:
            raise WeightsError(f"{where} has the stage {name!r}; expected names of folders, each once")


def read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path} is not JSON ({error}); restore or download it again") from error
    if not isinstance(data, dict):
        raise WeightsError(f"{path} holds a JSON {type(data).__name__}; expected an object")
    return data


def _to_json(data: Mapping[str, Any], path: Path) -> str:
    try:
        return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise WeightsError(f"{path.name} of {path.parent} cannot be written as JSON: {error}") from error


def _write_stage(folder: Path, stage: StageFiles) -> None:
    from safetensors.torch import save_file

    folder.mkdir()
    (folder / CONFIG).write_text(_to_json(stage.config, folder / CONFIG), encoding="utf-8")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in stage.tensors.items()}
    save_file(tensors, folder / TENSORS, metadata={"format": "pt"})


def _settle(folder: Path, mode: int) -> None:
    """Bring everything to the disk, readable for whom a new file is readable (safetensors makes files private)."""
    for path in [*folder.rglob("*"), folder]:
        if path.is_file():
            path.chmod(mode)
        _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _previous(folder: Path) -> Path:
    return folder.parent / f".{folder.name}.previous"


def _put_in_place(fresh: Path, folder: Path) -> None:
    """Rename `fresh` to `folder`; what was there is deleted after."""
    if not folder.exists():
        fresh.rename(folder)
    elif not _exchange(fresh, folder):
        # No way to exchange two folders here: for a moment there is none. read_manifest names the one put aside.
        previous = _previous(folder)
        shutil.rmtree(previous, ignore_errors=True)
        folder.rename(previous)
        fresh.rename(folder)
        shutil.rmtree(previous)
    _sync(folder.parent)


def _exchange(a: Path, b: Path) -> bool:
    """Exchange two folders in one step, where the system can (Linux's renameat2 with RENAME_EXCHANGE)."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None) if os.name == "posix" else None
    at_fdcwd, rename_exchange = -100, 2
    return renameat2 is not None and renameat2(at_fdcwd, os.fsencode(a), at_fdcwd, os.fsencode(b), rename_exchange) == 0
