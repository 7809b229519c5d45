"""Plain English that is on every machine: the docstrings of Python's standard library, as sentences.

A small text encoder pre-trained on captions alone would know no grammar but theirs. The sources are parsed, never
imported. They are under the PSF licence and are only read, at training time; nothing of them is shipped.
"""

from __future__ import annotations

import ast
import re
import sysconfig
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path

_SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3", "pydoc_data", "__pycache__"}
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z])")
_PROSE = re.compile(r"[A-Za-z][A-Za-z ,;:'\"()\-0-9]*[.!?]")  # a sentence of words; code has other characters
_MIN_WORDS, _MAX_WORDS = 4, 30


@cache
def _sentences() -> tuple[str, ...]:
    root = Path(sysconfig.get_paths()["stdlib"])
    found: dict[str, None] = {}
    for path in sorted(root.rglob("*.py")):
        if _SKIPPED.isdisjoint(path.relative_to(root).parts):
            for docstring in _docstrings(path):
                found.update(dict.fromkeys(_split(docstring)))
    return tuple(found)


def plain_text() -> list[str]:
    """Some ten thousand distinct English sentences of 4 to 30 words, in the order of the files.

    The same on every machine with the same Python. Takes a few seconds the first time.
    """
    return list(_sentences())


def _docstrings(path: Path) -> Iterator[str]:
    """The docstrings of a source file, top to bottom; none of a file that does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd escapes in other people's strings
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = ast.get_docstring(node)
            if docstring:
                yield docstring


def _split(docstring: str) -> Iterator[str]:
    """The sentences of prose in a docstring; lists, tables, examples and code fall through the pattern."""
    for paragraph in re.split(r"\n\s*\n", docstring):
        for sentence in _SENTENCE_END.split(" ".join(paragraph.split())):
            if _PROSE.fullmatch(sentence) and _MIN_WORDS <= len(sentence.split()) <= _MAX_WORDS:
                yield sentence
