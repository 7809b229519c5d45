"""A judge from outside: a program that is given a manifest of images and writes what it says of each.

    COMMAND MANIFEST OUTPUT

MANIFEST, a file of JSON lines, has of each image

    {"prompt": 12, "image": 3, "text": "a red car", "path": "...", "category": "colours", "extra": {}}

where extra is what else the prompt's line in the suite says. The program writes to OUTPUT one line for each, in any
order: {"prompt": 12, "image": 3, "score": 0.31}, or {"prompt": 12, "image": 3, "right": true}, to which "wrong", a list
of words, may be added. It is run without a shell. Where it fails, what it has written is kept, and the next time it is
given the rest. It counts as the same judge, wherever it lies, as long as the files that its command line names, and the
other words of it, are the same.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipelines.batch.run import Run, sha256
from pipelines.evaluation.scores import Judge, Key, parse

SCRIPTS = (".py", ".sh")


def outside_judge(command: str, name: str | None = None) -> Judge:
    """command: a command line, quoted as for a shell. name: by default that of its script, else of its program.

    Raises ValueError if there is no such program.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ValueError(f"the judge {command!r} is no command line ({error})") from None
    if not words or shutil.which(words[0]) is None:
        raise ValueError(f"the judge {command!r}: no such program; expected toybox, clip, or a command line")
    script = next((i for i, word in enumerate(words) if word.endswith(SCRIPTS)), 0)
    name = name or re.sub(r"[^A-Za-z0-9._-]+", "-", Path(words[script]).stem).strip("._-") or "judge"
    # What runs a script is no part of the judge: python is the same judge's in every environment.
    contents = [sha256(Path(word)) or word for word in words[script:]]
    version = f"sha256:{hashlib.sha256(json.dumps(contents).encode()).hexdigest()}"
    return Judge(name, version, partial(_run, words), command)


def _run(words: Sequence[str], run: Run, todo: Sequence[Key]) -> Iterator[Mapping[str, Any]]:
    with TemporaryDirectory(prefix="cascade-judge-") as folder:
        manifest, output = Path(folder) / "manifest.jsonl", Path(folder) / "scores.jsonl"
        manifest.write_text("".join(json.dumps(_entry(run, *key)) + "\n" for key in todo), encoding="utf-8")
        status = subprocess.run([*words, str(manifest), str(output)], stdin=subprocess.DEVNULL, check=False).returncode
        data = output.read_bytes() if output.is_file() else b""
    said = shlex.join(words)
    try:
        records = _read(data, set(todo), cut_short=status != 0)
    except ValueError as error:
        raise ValueError(f"{said} wrote {error}; none of what it wrote is kept") from None
    yield from records.values()
    missing = [key for key in todo if key not in records]
    kept = f"the {len(records)} scores it has written are kept, and it is asked for the others the next time"
    kept = kept if records else "it has written no scores"
    if status != 0:
        raise ValueError(f"{said} ended with status {status}; {kept}")
    if missing:
        prompt, image = missing[0]
        raise ValueError(
            f"{said} left out {len(missing)} of {len(todo)} images, the first image {image} of prompt {prompt}; {kept}"
        )


def _entry(run: Run, prompt: int, image: int) -> dict[str, Any]:
    record = run.prompts[prompt]
    return {
        "prompt": prompt,
        "image": image,
        "text": record.prompt,
        "path": str(run.path(prompt, image).absolute()),
        "category": record.category,
        "extra": dict(record.extra),
    }


def _read(data: bytes, todo: Collection[Key], *, cut_short: bool) -> dict[Key, Mapping[str, Any]]:
    """The lines of a judge, checked. cut_short: the last one may be. Raises ValueError naming the line."""
    lines = data.split(b"\n")
    if cut_short:
        del lines[-1]  # what follows the last end of a line
    found: dict[Key, Mapping[str, Any]] = {}
    measures = set()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            key, measure, _ = parse(record)
            measures.add(measure)
            if key not in todo:
                raise ValueError(f"image {key[1]} of prompt {key[0]} is not in the manifest")
            if key in found:
                raise ValueError(f"a second score for image {key[1]} of prompt {key[0]}")
            if len(measures) > 1:
                raise ValueError('both "score" and "right"')
        except ValueError as error:
            raise ValueError(f"in line {number}: {error}") from None
        found[key] = record
    return found
