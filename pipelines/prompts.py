"""Prompt files: one prompt a line (txt), tables (csv, tsv), JSON lines (ours, and GenEval's metadata).

What a line says beyond its prompt and its category is kept as it is: the scene a toybox prompt expects, GenEval's
"include", PartiPrompts' "Challenge". A line that cannot be read does not stop the others.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Names of columns and keys, in lower case; where a file has several of a row, the first counts.
PROMPT_NAMES = ("prompt", "prompts", "caption", "text")
CATEGORY_NAMES = ("category", "tag")


@dataclass(frozen=True)
class PromptRecord:
    """A prompt with its category ("" for none) and what else its line says, as JSON values by name.

    Raises TypeError or ValueError for a prompt that is empty or that no file could hold.
    """

    prompt: str
    category: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("prompt", "category"):
            value = getattr(self, name)
            if not isinstance(value, str):
                raise TypeError(f"the {name} is {value!r}; expected text")
            try:
                value.encode()
            except UnicodeEncodeError:
                raise ValueError(f"the {name} {value!r} is no valid Unicode; save the file as UTF-8") from None
            if "\0" in value:
                raise ValueError(f"the {name} {value!r} holds a NUL character; take it out")
            object.__setattr__(self, name, value.strip())
        if not self.prompt:
            raise ValueError("the prompt is empty; describe an image")
        taken = [key for key in self.extra if key.strip().lower() in ("prompt", "category")]
        if taken:
            raise ValueError(f"extra holds {taken}, which a line says once; rename them")

    def to_json(self) -> str:
        """One line that `read_prompts` reads back from a .jsonl."""
        return json.dumps({"category": self.category, "prompt": self.prompt} | dict(self.extra))


@dataclass(frozen=True)
class BadLine:
    """A line that could not be read: its number, counted from 1, and why."""

    line: int
    problem: str


@dataclass(frozen=True)
class PromptFile:
    """The prompts of a file, in their order, and the lines that could not be read."""

    path: Path
    records: Sequence[PromptRecord]
    bad: Sequence[BadLine] = ()


Row = tuple[int, PromptRecord | str]  # a line's number, and its record or what is wrong with it


def read_prompts(path: str | Path) -> PromptFile:
    """Read a prompt file, in the format its ending names; or a folder of texts, one prompt each (DPG-Bench's form).

    txt: a prompt a line. csv, tsv: the first line names the columns, of which one is prompt, prompts, caption or text;
    category or tag is optional. tsv knows no quotes, as PartiPrompts needs it. jsonl: an object a line, with the same
    names. Case does not matter in a name, empty lines are passed over. A folder: every .txt is a prompt, whose
    "item_id" is the file's name.

    Lines that cannot be read are in the result's `bad`. Raises ValueError or OSError, naming the file and the remedy,
    for a file of which nothing can be read.
    """
    path = Path(path)
    if path.is_dir():
        rows = list(_texts(path))
    else:
        reader = READERS.get(path.suffix.lower())
        if reader is None:
            raise ValueError(f"{path} ends in {path.suffix!r}; expected {', '.join(READERS)}: rename or convert it")
        rows = list(reader(_decode(path), path))
    records = [found for _, found in rows if isinstance(found, PromptRecord)]
    bad = [BadLine(line, found) for line, found in rows if isinstance(found, str)]
    if not records:
        first = f": line {bad[0].line}: {bad[0].problem}" if bad else ""
        raise ValueError(f"{path} holds no prompt that can be read{first}")
    return PromptFile(path, records, bad)


def _decode(path: Path) -> str:
    """The text of a file; bytes that are no UTF-8 become lone surrogates, which PromptRecord refuses line by line."""
    data = path.read_bytes()
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError(f"{path} is in UTF-16; save it as UTF-8")
    text = data.decode("utf-8-sig", errors="surrogateescape")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _record(line: int, make: Callable[[], PromptRecord]) -> Row:
    try:
        return line, make()
    except (ValueError, TypeError, RecursionError) as error:
        return line, str(error)


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines that are not empty, numbered as an editor numbers them (str.splitlines knows other ends, too)."""
    return ((number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip())


def _read_txt(text: str, path: Path) -> Iterator[Row]:
    for number, line in _lines(text):
        yield _record(number, lambda line=line: PromptRecord(line))


def _read_jsonl(text: str, path: Path) -> Iterator[Row]:
    for number, line in _lines(text):
        yield _record(number, lambda line=line: _from_object(_parse(line)))


def _parse(line: str) -> Any:
    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON value; leave it out, or write null")

    try:
        return json.loads(line, parse_constant=refuse)
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON ({error}); expected one object a line") from None


def _from_object(value: Any) -> PromptRecord:
    if not isinstance(value, dict):
        raise ValueError(f"a JSON {type(value).__name__}; expected an object with a prompt")
    prompt, category = _find(value, PROMPT_NAMES), _find(value, CATEGORY_NAMES)
    if prompt is None:
        raise ValueError(f"no {', '.join(PROMPT_NAMES)} among its keys {list(value)}; name what to draw")
    extra = {key: own for key, own in value.items() if key not in (prompt, category)}
    return PromptRecord(value[prompt], "" if category is None else value[category] or "", extra)


def _find(keys: Iterable[str], names: Sequence[str]) -> str | None:
    """The key that has the first of the names there is, in any case. Raises ValueError if two keys have it."""
    keys = list(keys)
    for name in names:
        found = [key for key in keys if key.strip().lower() == name]
        if len(found) > 1:
            raise ValueError(f"{' and '.join(map(repr, found))} name the same; keep one")
        if found:
            return found[0]
    return None


def _read_csv(text: str, path: Path) -> Iterator[Row]:
    # newline="": the reader must see the line ends inside quotes.
    return _read_table(csv.reader(io.StringIO(text, newline=""), strict=True), path)


def _read_tsv(text: str, path: Path) -> Iterator[Row]:
    return _read_table(csv.reader(io.StringIO(text, newline=""), delimiter="\t", quoting=csv.QUOTE_NONE), path)


def _read_table(reader: Any, path: Path) -> Iterator[Row]:  # what csv.reader returns has no public name
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if header is None:
                raise ValueError(f"{path}, line {line}: {error}; the first line names the columns") from None
            yield line, f"{error}; a field that holds quotes or commas is quoted, and its own quotes are doubled"
            continue
        if not any(cell.strip() for cell in cells):
            continue
        if header is None:
            header = _header(cells, path)
            continue
        yield _record(line, lambda header=header, cells=cells: _from_cells(header, cells))


def _header(cells: list[str], path: Path) -> list[str]:
    """The names of the columns. Raises ValueError if none of them is the prompt's, or two are."""
    header = [cell.strip() for cell in cells]
    try:
        prompt, _ = _find(header, PROMPT_NAMES), _find(header, CATEGORY_NAMES)
    except ValueError as error:
        raise ValueError(f"{path}: the columns {error}") from None
    if prompt is None:
        raise ValueError(
            f"{path} has no column named {', '.join(PROMPT_NAMES)}; its first line names {header}. Name the columns "
            "there, or use a .txt with a prompt a line"
        )
    return header


def _from_cells(header: list[str], cells: list[str]) -> PromptRecord:
    if len(cells) > len(header):
        raise ValueError(f"{len(cells)} fields under {len(header)} columns; quote the field that holds the separator")
    row = {name: cell for name, cell in zip(header, cells, strict=False) if name and cell.strip()}
    prompt, category = _find(header, PROMPT_NAMES), _find(header, CATEGORY_NAMES)
    extra = {name: cell for name, cell in row.items() if name not in (prompt, category)}
    return PromptRecord(row.get(prompt or "", ""), row.get(category or "", ""), extra)


def _texts(folder: Path) -> Iterator[Row]:
    for number, path in enumerate(sorted(folder.glob("*.txt")), start=1):
        yield _record(
            number, lambda path=path: PromptRecord(" ".join(_decode(path).split()), extra={"item_id": path.stem})
        )


READERS: Mapping[str, Callable[[str, Path], Iterator[Row]]] = {
    ".txt": _read_txt,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_jsonl,
}
