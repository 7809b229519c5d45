"""The tensors of one component of a pipeline, as diffusers and transformers store them: a file or shards of it,
safetensors or a legacy `.bin`, perhaps of a variant such as fp16.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weights.store import WeightsError, read_json, read_legacy

if TYPE_CHECKING:
    from torch import Tensor

# How the weights of a component are called, without variant and ending: safetensors, legacy.
Stems = tuple[str, str]
DIFFUSERS: Stems = ("diffusion_pytorch_model", "diffusion_pytorch_model")
TRANSFORMERS: Stems = ("model", "pytorch_model")
ENDINGS = ("safetensors", "bin")

# The components that have weights, of DeepFloyd IF and of upscalers; the optional ones may lack the variant.
COMPONENTS = {
    "unet": DIFFUSERS,
    "vae": DIFFUSERS,
    "text_encoder": TRANSFORMERS,
    "safety_checker": TRANSFORMERS,
    "watermarker": DIFFUSERS,
}
OPTIONAL = ("safety_checker", "watermarker")


def find_files(folder: Path, stems: Stems, variant: str | None = None, *, optional: bool = False) -> list[Path]:
    """The files that hold a component's weights, safetensors before legacy ones; those without the variant where an
    optional component lacks it.

    Raises WeightsError naming what is missing, or the variants that are there instead.
    """
    middle = _middle(variant)
    for stem, ending in zip(stems, ENDINGS, strict=True):
        whole, index = folder / f"{stem}{middle}.{ending}", folder / f"{stem}.{ending}.index{middle}.json"
        if whole.is_file():
            return [whole]
        if index.is_file():
            files = [folder / name for name in _shards(index)]
            if missing := [file.name for file in files if not file.is_file()]:
                raise WeightsError(f"{folder} lacks the shards {', '.join(missing)}; copy or download them again")
            return files
    if optional and variant is not None:
        return find_files(folder, stems)
    raise WeightsError(
        f"no weights in {folder}: expected {stems[0]}{middle}.safetensors (or shards, or a .bin){_there(folder, stems)}"
    )


def has_weights(folder: Path, stems: Stems, variant: str | None, *, optional: bool) -> bool:
    try:
        return bool(find_files(folder, stems, variant, optional=optional))
    except WeightsError:
        return False


def download_patterns(folder: Path, stems: Stems, variant: str | None, *, optional: bool) -> list[list[str]]:
    """What to ask the hub for, in this order until there are weights; JSON files are in the folder already."""
    attempts = []
    for chosen in (variant, None) if optional and variant is not None else (variant,):
        for stem, ending in zip(stems, ENDINGS, strict=True):
            index = folder / f"{stem}.{ending}.index{_middle(chosen)}.json"
            names = _shards(index) if index.is_file() else [f"{stem}{_middle(chosen)}.{ending}"]
            attempts.append([f"{folder.name}/{name}" for name in names])
    return [*attempts, []]


def _middle(variant: str | None) -> str:
    return "" if variant is None else f".{variant}"


def _shards(index: Path) -> list[str]:
    """The names of the files an index lists."""
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise WeightsError(f"{index} has no weight_map, which names the shards; download it again")
    return [Path(str(name)).name for name in dict.fromkeys(shards.values())]


def _there(folder: Path, stems: Stems) -> str:
    """The end of a message: the weights that are there although they were not asked for."""
    names = [file.name for file in folder.glob("*")] if folder.is_dir() else []
    found = {_variant(name, stems) for name in names if _variant(name, stems) != ""}
    if not found:
        return ""
    variants = " or ".join(sorted(f"variant={name!r}" if name else "no variant" for name in found))
    return f"; there is something else: ask for {variants}"


def _variant(name: str, stems: Stems) -> str | None:
    """The fp16 of model.fp16.safetensors or model.safetensors.index.fp16.json, None without variant, "" for others."""
    stem, *parts = name.split(".")
    if stem not in stems or not parts:
        return ""
    if parts[-1] in ENDINGS:
        return None if len(parts) == 1 else parts[0]
    return ("" if parts[1:2] != ["index"] else None if len(parts) == 3 else parts[2]) if parts[-1] == "json" else ""


class StoredTensors:
    """Named tensors in some files. Names and shapes are read from the headers; a tensor when it is asked for (of a
    legacy file, all at once).

    Raises WeightsError if a file is truncated or damaged. To be closed, or used in a `with`.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        from safetensors import SafetensorError, safe_open

        self.where = str(files[0] if len(files) == 1 else files[0].parent)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._open = ExitStack()
        self._source: dict[str, Any] = {}
        for file in files:
            if file.suffix == ".bin":
                tensors = read_legacy(file)
                self.shapes |= {name: tuple(tensor.shape) for name, tensor in tensors.items()}
                self._source |= dict.fromkeys(tensors, tensors.pop)
                continue
            try:
                header = self._open.enter_context(safe_open(file, framework="pt"))
                names = list(header.keys())
                self.shapes |= {name: tuple(header.get_slice(name).get_shape()) for name in names}
            except (SafetensorError, OSError) as error:
                raise WeightsError(f"{file} is truncated or damaged ({error}); copy or download it again") from error
            self._source |= dict.fromkeys(names, header.get_tensor)

    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU in its stored type; once, for a legacy file keeps none that was read."""
        return self._source[name](name)

    def close(self) -> None:
        self._open.close()
        self._source.clear()

    def __enter__(self) -> StoredTensors:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
