"""Suites by name: public prompt files, which are not ours to ship, found in a folder and checked; and the toybox's.

The variable CASCADE_SUITES names the folder. `python -m pipelines.evaluation.public_suites NAME` downloads one into it.
"""

from __future__ import annotations

import os
import urllib.request
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipelines.prompts import PromptFile, read_prompts
from weights.store import atomic_write

VARIABLE = "CASCADE_SUITES"
TIMEOUT = 60  # seconds
LIMIT = 2**24  # bytes; the largest of the files has 0.1 MB


@dataclass(frozen=True)
class PublicSuite:
    """file: its name in the folder of suites. home: where it is published. counts: prompts of each category."""

    file: str
    home: str
    counts: Mapping[str, int]


PUBLIC = {
    "drawbench": PublicSuite(  # Imagen, appendix C
        "drawbench.csv",
        "https://docs.google.com/spreadsheets/d/1y7nAbmR4FREi6npB1u-Bo3GFdwdOPYJc617rBOxIRHY/gviz/tq?tqx=out:csv",
        {
            "Colors": 25,
            "Conflicting": 10,
            "Counting": 19,
            "DALL-E": 20,
            "Descriptions": 20,
            "Gary Marcus et al.": 10,
            "Misspellings": 10,
            "Positional": 20,
            "Rare Words": 7,
            "Reddit": 38,
            "Text": 21,
        },
    ),
    "partiprompts": PublicSuite(
        "PartiPrompts.tsv",
        "https://raw.githubusercontent.com/google-research/parti/main/PartiPrompts.tsv",
        {
            "Abstract": 51,
            "Animals": 314,
            "Artifacts": 287,
            "Arts": 66,
            "Food & Beverage": 74,
            "Illustrations": 124,
            "Indoor Scenes": 40,
            "Outdoor Scenes": 131,
            "People": 177,
            "Produce & Plants": 50,
            "Vehicles": 104,
            "World Knowledge": 214,
        },
    ),
    "geneval": PublicSuite(
        "geneval_metadata.jsonl",
        "https://raw.githubusercontent.com/djghosh13/geneval/main/prompts/evaluation_metadata.jsonl",
        {
            "single_object": 80,
            "two_object": 99,
            "counting": 80,
            "colors": 94,
            "position": 100,
            "color_attr": 100,
        },
    ),
}
NAMES = (*PUBLIC, "toybox")


def find_prompts(source: str | Path) -> PromptFile:
    """The prompts of a file, or of a suite by its name. Raises ValueError or OSError naming what is wrong, and the
    remedy."""
    if str(source).lower() in NAMES and not Path(source).exists():
        return named_suite(str(source).lower())
    if not Path(source).exists():
        raise ValueError(f"no file {source}; expected a path, or a suite: {', '.join(NAMES)}")
    return read_prompts(source)


def named_suite(name: str, folder: str | Path | None = None) -> PromptFile:
    """A suite by its name, checked. folder: None for the one that CASCADE_SUITES names."""
    if name == "toybox":
        return read_prompts(Path(__file__).parent / "toybox.jsonl")
    suite = _public(name)
    path = _folder(folder) / suite.file
    if not path.is_file():
        raise ValueError(
            f"no {path}. Download it there with `python -m pipelines.evaluation.public_suites {name}`, or from "
            f"{suite.home}"
        )
    found = read_prompts(path)
    check(name, found)
    return found


def check(name: str, found: PromptFile) -> None:
    """Raises ValueError where a file's prompts are not as many, in each category, as the suite's are."""
    wanted, counts = _public(name).counts, Counter(record.category for record in found.records)
    problems = [
        f"{counts[category]} in {category!r}, expected {wanted.get(category, 0)}"
        for category in [*wanted, *(counts.keys() - wanted.keys())]
        if counts[category] != wanted.get(category, 0)
    ]
    problems += [f"line {bad.line}: {bad.problem}" for bad in found.bad]
    if problems:
        shown = "; ".join(problems[:5]) + ("; ..." if len(problems) > 5 else "")
        raise ValueError(
            f"{found.path} is not {name} as it was published ({sum(wanted.values())} prompts): {shown}. Fetch it anew "
            f"from {_public(name).home}, or give its path to use it as it is"
        )


def download(name: str, folder: str | Path | None = None, *, home: str | None = None) -> Path:
    """Fetch a public suite and put it into the folder of suites, if it is what it should be.

    home: fetch it from there instead; https, or a server on this machine. Raises ValueError or OSError.
    """
    suite = _public(name)
    home = home or suite.home
    if not home.startswith(("https://", "http://127.0.0.1:")):
        raise ValueError(f"{home} is no https address; give one")
    target = _folder(folder) / suite.file
    with urllib.request.urlopen(home, timeout=TIMEOUT) as response:
        data = response.read(LIMIT + 1)
    if len(data) > LIMIT:
        raise ValueError(f"{home} gives more than {LIMIT} bytes, which is not {name}; fetch it by hand")
    # Checked beside its place, under a name with the same ending, which tells its format.
    fresh = target.with_name(f".{os.getpid()}.{target.name}")
    try:
        fresh.write_bytes(data)
        check(name, read_prompts(fresh))
    finally:
        fresh.unlink(missing_ok=True)
    atomic_write(target, data)
    return target


def _public(name: str) -> PublicSuite:
    if name not in PUBLIC:
        raise ValueError(f"no public suite {name!r}; expected one of {', '.join(PUBLIC)}")
    return PUBLIC[name]


def _folder(folder: str | Path | None) -> Path:
    """Where the public suites lie."""
    folder = folder or os.environ.get(VARIABLE)
    if not folder:
        raise ValueError(f"the variable {VARIABLE} is not set; set it to the folder that holds the public prompt files")
    if not Path(folder).is_dir():
        raise ValueError(f"no folder {folder} ({VARIABLE} names the folder of the public prompt files); make it first")
    return Path(folder)


if __name__ == "__main__":
    import tyro

    try:
        print(tyro.cli(download))
    except (ValueError, OSError) as error:
        raise SystemExit(f"cascade: error: {error}") from None
