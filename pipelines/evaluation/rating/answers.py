"""The answers of raters: one SQLite file that is only ever appended to, and can be read while it is written.

    study     one row: what is compared (JSON), and the key that raters' credentials are signed with
    prompts   number, category and caption of each prompt
    answers   a row per answer; a rater who corrects one adds a row, and the last one counts

An answer is on the disk before `Answers.add` returns (write-ahead log, synchronous FULL). Each carries a name that the
page chose for it, its submission, so one that is sent twice is kept once.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import quote

from pipelines.prompts import PromptRecord

Question = Literal["quality", "alignment"]
Preference = Literal["first", "neither", "second"]
QUESTIONS: tuple[Question, ...] = get_args(Question)

# What a study is determined by (study.py), in the words of those who run the command.
DETERMINED_BY = {
    "first": "the first name",
    "second": "the second name",
    "first_run": "the digest of the first run's settings",
    "second_run": "the digest of the second run's settings",
    "images": "the number of images a side",
    "seed": "--seed",
    "controls": "--controls",
}

APPLICATION_ID = int.from_bytes(b"casc")  # in the file's header: whose SQLite file this is
FORMAT = 1
SCHEMA = f"""
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {FORMAT};
CREATE TABLE study (about TEXT NOT NULL, key BLOB NOT NULL);
CREATE TABLE prompts (number INTEGER PRIMARY KEY, category TEXT NOT NULL, caption TEXT NOT NULL);
CREATE TABLE answers (
    id INTEGER PRIMARY KEY,
    rater TEXT NOT NULL,
    prompt INTEGER NOT NULL REFERENCES prompts (number),
    control INTEGER NOT NULL,
    question TEXT NOT NULL,
    preference TEXT NOT NULL,
    first_was TEXT NOT NULL,  -- the side it was on: a (left) or b
    seconds REAL NOT NULL,
    at REAL NOT NULL,  -- Unix time
    submission TEXT NOT NULL,
    UNIQUE (rater, submission)
);
CREATE INDEX item ON answers (rater, prompt, control, question);
"""


@dataclass(frozen=True)
class Answer:
    """What a rater holds of one prompt.

    first, second: the two models' names, in the order of the study, whatever side of the screen each was on.
    prompt: its number in the runs. control: both sets were of one model, and one of them of another prompt; there
    "first" is the set of this prompt, and passed says whether it was preferred. seconds: it took to answer.
    """

    rater: str
    first: str
    second: str
    prompt: int
    category: str
    question: Question
    preference: Preference
    control: bool
    passed: bool | None
    seconds: float


def read_answers(path: Path) -> list[Answer]:
    """The answers that count, in the order they were given: the last one of each rater to each question on each screen.

    What a control's sets are worth in quality has no known answer, so those are left out. Works while the server
    writes. Raises ValueError where the file is not one of answers, OSError where there is none.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no answers at {path}; `cascade drawbench rate` collects some")
    with _named(path), closing(sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True)) as db:
        _check_format(db, path)
        about = json.loads(db.execute("SELECT about FROM study").fetchone()[0])
        rows = db.execute(
            "SELECT rater, prompt, category, question, preference, control, seconds"
            " FROM answers JOIN prompts ON prompt = number"
            " WHERE id IN (SELECT max(id) FROM answers GROUP BY rater, prompt, control, question)"
            " AND NOT (control AND question = 'quality') ORDER BY id"
        ).fetchall()
    return [
        Answer(
            rater=rater,
            first=about["first"],
            second=about["second"],
            prompt=prompt,
            category=category,
            question=question,
            preference=preference,
            control=bool(control),
            passed=preference == "first" if control else None,
            seconds=seconds,
        )
        for rater, prompt, category, question, preference, control, seconds in rows
    ]


def controls_passed(answers: Iterable[Answer]) -> dict[str, tuple[int, int]]:
    """Of each rater who answered any: how many control items were passed, of how many."""
    found: dict[str, tuple[int, int]] = {}
    for answer in answers:
        passed, of = found.get(answer.rater, (0, 0))
        found[answer.rater] = (passed + (answer.passed is True), of + answer.control)
    return found


class Answers:
    """A file of answers that is open for writing, from any thread.

    about: what is compared; the names "first" and "second" are of the two models. Raises ValueError where the file
    holds answers about something else.
    """

    def __init__(self, path: Path, about: Mapping[str, Any], prompts: Iterable[PromptRecord]) -> None:
        self._lock = threading.Lock()
        self.path = path
        if not path.parent.is_dir():
            raise FileNotFoundError(f"no folder {path.parent} for the answers; make it first")
        with _named(path):
            self._db = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
        try:
            with _named(path):
                self._create(about, prompts)
                _check_format(self._db, path)
                self._db.execute("PRAGMA journal_mode = WAL")
                self._db.execute("PRAGMA synchronous = FULL")
                there, self.key = self._db.execute("SELECT about, key FROM study").fetchone()
            _check_study(json.loads(there), about, path)
        except BaseException:
            self._db.close()
            raise

    def _create(self, about: Mapping[str, Any], prompts: Iterable[PromptRecord]) -> None:
        """All tables or none, where the file is new."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            if not self._db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                for statement in SCHEMA.split(";\n"):
                    self._db.execute(statement)
                self._db.execute("INSERT INTO study VALUES (?, ?)", (json.dumps(dict(about)), secrets.token_bytes(32)))
                rows = [(number, record.category, record.prompt) for number, record in enumerate(prompts)]
                self._db.executemany("INSERT INTO prompts VALUES (?, ?, ?)", rows)
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            raise

    def add(
        self,
        *,
        rater: str,
        prompt: int,
        control: bool,
        question: Question,
        preference: Preference,
        first_was: Literal["a", "b"],
        seconds: float,
        submission: str,
    ) -> None:
        """Keep an answer; when this returns it is on the disk. A submission that is there already is not kept again.

        Raises ValueError where the submission was another answer, sqlite3.Error where it cannot be written.
        """
        row = (rater, prompt, int(control), question, preference, submission)
        with self._lock:
            added = self._db.execute(
                "INSERT INTO answers (rater, prompt, control, question, preference, submission, first_was, seconds, at)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (rater, submission) DO NOTHING",
                (*row, first_was, seconds, time.time()),
            )
            if not added.rowcount:
                columns = "rater, prompt, control, question, preference, submission"
                there = f"SELECT {columns} FROM answers WHERE rater = ? AND submission = ?"
                if self._db.execute(there, (rater, submission)).fetchone() != row:
                    raise ValueError(f"submission {submission!r} was another answer; choose a fresh one")

    def of(self, rater: str) -> dict[tuple[int, bool, Question], Preference]:
        """What holds of a rater's answers, by (prompt, control, question)."""
        with self._lock:
            rows = self._db.execute(
                "SELECT prompt, control, question, preference FROM answers WHERE rater = ? ORDER BY id", (rater,)
            ).fetchall()
        return {(prompt, bool(control), question): preference for prompt, control, question, preference in rows}

    def close(self) -> None:
        with self._lock:
            self._db.close()


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """What SQLite says of a file, as what the user can do about it."""
    try:
        yield
    except sqlite3.OperationalError as error:  # locked, read-only, full
        raise OSError(f"{path}: {error}") from None
    except sqlite3.DatabaseError as error:
        raise ValueError(f"{path} holds no answers of raters ({error}); choose another file") from None


def _check_format(db: sqlite3.Connection, path: Path) -> None:
    (owner,), (version,) = (db.execute(f"PRAGMA {name}").fetchone() for name in ("application_id", "user_version"))
    if owner != APPLICATION_ID:
        raise ValueError(f"{path} is another program's SQLite file; choose another file")
    if version != FORMAT:
        raise ValueError(f"{path} has format {version} and this version reads {FORMAT}; update cascade-t2i")


def _check_study(there: Mapping[str, Any], here: Mapping[str, Any], path: Path) -> None:
    differing = [
        f"{DETERMINED_BY.get(key, key)} is {there.get(key)!r} there and {here.get(key)!r} here"
        for key in dict.fromkeys([*there, *here])
        if there.get(key) != here.get(key)
    ]
    if differing:
        raise ValueError(
            f"{path} holds answers about something else: {'; '.join(differing)}. Choose another file with -o, or what "
            "it was begun with"
        )
