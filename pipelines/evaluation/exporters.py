"""A run folder laid out as other benchmarks' evaluations expect it.

Images are linked, not copied, where the file system can; names never leave the folder, whatever a prompt says.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

if TYPE_CHECKING:
    from pipelines.batch.run import Run

Layout = Literal["geneval", "t2i-compbench", "dpg-bench", "hpsv2"]


def export(
    run: tyro.conf.Positional[Path],
    output: tyro.conf.Positional[Path],
    layout: Layout,
) -> None:
    """Lay out the images of a batch as a benchmark's own evaluation expects them.

    Args:
        run: A complete folder that `cascade batch` wrote.
        output: The folder to make; it must be empty or not be there.
        layout: geneval, t2i-compbench, dpg-bench or hpsv2.
    """
    from pipelines.batch.run import read_run

    found = read_run(run)
    if output.exists() and any(output.iterdir()):
        raise ValueError(f"{output} is not empty; choose another folder, so that no other images are among these")
    fresh = output.absolute().with_name(f".{output.name}.exporting")  # one that fails leaves nothing in its place
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        EXPORTERS[layout](found, fresh)
        fresh.replace(output)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    print(output)


def geneval(run: Run, folder: Path) -> None:
    """00012/metadata.jsonl, a prompt's line, and 00012/samples/0003.png (github.com/djghosh13/geneval, README).

    Raises ValueError for a prompt without GenEval's "include".
    """
    for number, record, images in run:
        if "include" not in record.extra:
            raise ValueError(f'prompt {number} has no "include"; GenEval\'s layout is for prompts of its metadata file')
        place = folder / f"{number:05d}"
        (place / "samples").mkdir(parents=True)
        line = {"tag": record.category} | dict(record.extra) | {"prompt": record.prompt}
        (place / "metadata.jsonl").write_text(json.dumps(line), encoding="utf-8")
        for k, image in enumerate(images):
            _link(image, place / "samples" / f"{k:04d}.png")


def t2i_compbench(run: Run, folder: Path) -> None:
    """samples/PROMPT_000012.png, numbered over the whole set (github.com/Karine-Huang/T2I-CompBench).

    Its evaluation reads the prompt from the name, up to the first underscore. What cannot stand in a name, and
    underscores, become spaces; a prompt is cut where the name would grow beyond 255 bytes.
    """
    (folder / "samples").mkdir(parents=True)
    j = 0
    for _, record, images in run:
        prompt = " ".join(re.sub(r'[_/\\:*?"<>|\x00-\x1f\x7f]', " ", record.prompt).split()).lstrip(". ")
        prompt = prompt.encode()[: 255 - len("_000000.png")].decode(errors="ignore") or "prompt"
        for image in images:
            _link(image, folder / "samples" / f"{prompt}_{j:06d}.png")
            j += 1


def dpg_bench(run: Run, folder: Path) -> None:
    """ITEM_ID.png, a prompt's first four images in two rows (github.com/TencentQQGYLab/ELLA, compute_dpg_bench.py).

    Evaluate with --pic-num 4 and --resolution the side of one image; a run of one image a prompt gives that image
    alone, for --pic-num 1. Raises ValueError for a prompt without "item_id", which `read_prompts` takes from the name
    of each text in the folder of the benchmark's prompts.
    """
    from PIL import Image

    from pipelines.images import grid
    from pipelines.metadata import save_png

    if run.images_per_prompt not in (1, 4):
        raise ValueError(f"the run has {run.images_per_prompt} images a prompt; DPG-Bench takes 4, or 1")
    folder.mkdir(parents=True, exist_ok=True)
    for number, record, images in run:
        name = str(record.extra.get("item_id", ""))
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,100}", name):  # the evaluation cuts a name at its first dot
            raise ValueError(f"prompt {number} has the item_id {name!r}; expected letters, digits, - and _")
        if (folder / f"{name}.png").exists():
            raise ValueError(f"two prompts have the item_id {name!r}; DPG-Bench has one image of each")
        if len(images) == 1:
            _link(images[0], folder / f"{name}.png")
        else:
            save_png(grid([Image.open(image) for image in images], columns=2), folder / f"{name}.png")


def hpsv2(run: Run, folder: Path) -> None:
    """STYLE/00012.jpg, the first image of the style's prompt 12 (github.com/tgxs002/HPSv2, README).

    A prompt's category is its style, and within one the order is that of the benchmark's file. The files are PNG under
    the name that the evaluation looks for; it opens them with Pillow, which goes by the content.
    """
    styles = ("anime", "concept-art", "paintings", "photo")
    count = dict.fromkeys(styles, 0)
    for number, record, images in run:
        if record.category not in count:
            raise ValueError(f"prompt {number} has the category {record.category!r}; expected {', '.join(styles)}")
        place = folder / record.category
        place.mkdir(parents=True, exist_ok=True)
        _link(images[0], place / f"{count[record.category]:05d}.jpg")
        count[record.category] += 1


EXPORTERS: dict[str, Callable[[Any, Path], None]] = {
    "geneval": geneval,
    "t2i-compbench": t2i_compbench,
    "dpg-bench": dpg_bench,
    "hpsv2": hpsv2,
}


def _link(source: Path, target: Path) -> None:
    """A hard link; a copy where there can be none (another file system, or one without links)."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:
        shutil.copyfile(source, target)
