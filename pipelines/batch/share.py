"""What there is to do for one process: its groups of images, and which of them are missing.

Groups of `batch_size` consecutive images are drawn together; process r of R takes the groups r, r + R, ... They do not
depend on the number of processes or on what is there already.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from pipelines.batch.run import IMAGES, image_path, read_manifests, sha256
from pipelines.process import Process

HALF_WRITTEN = re.compile(r"\.(\d{5,})-(\d+)\.png\.\d+\.saving")  # what atomic_write leaves when it is killed


@dataclass(frozen=True)
class Share:
    """groups: those with something missing, whole. missing: their images that are not there, or damaged. kept: how many
    images of this process are there, as their manifest says."""

    groups: list[range]
    missing: frozenset[int]
    kept: int


def find_share(folder: Path, images: int, per_prompt: int, batch_size: int, process: Process) -> Share:
    """Compare the files of this process's groups with the manifests; remove what a killed process left half written.

    images: of all processes; image number j is image j % per_prompt of prompt j // per_prompt.
    """
    starts = range(process.rank * batch_size, images, process.world * batch_size)
    groups = [range(start, min(start + batch_size, images)) for start in starts]
    mine = {j for group in groups for j in group}
    for path in (folder / IMAGES).glob(".*.saving"):
        found = HALF_WRITTEN.fullmatch(path.name)
        if found and int(found[1]) * per_prompt + int(found[2]) in mine:  # others are writing theirs right now
            path.unlink(missing_ok=True)
    written = read_manifests(folder)
    missing = set()
    for j in mine:
        key = divmod(j, per_prompt)
        if key not in written or sha256(image_path(folder, *key)) not in written[key]:
            missing.add(j)
    todo = [group for group in groups if not missing.isdisjoint(group)]
    return Share(todo, frozenset(missing), len(mine) - len(missing))
