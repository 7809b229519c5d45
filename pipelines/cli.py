"""The `cascade` command: a table of commands, each a typed function in a module imported only when it is called.

tyro turns the function's signature and docstring into options and help. The overview and the version need neither
tyro nor torch, so they answer at once.
"""

import difflib
import importlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cascade import __version__


@dataclass(frozen=True)
class Command:
    """Where a command's function lives, and its line in the overview."""

    module: str
    function: str
    help: str

    def load(self) -> Callable[..., Any]:
        return getattr(importlib.import_module(self.module), self.function)


COMMANDS = {
    "generate": Command("pipelines.generate", "generate", "draw images from prompts"),
    "batch": Command("pipelines.batch.command", "batch", "draw images for every prompt of a file, resumably"),
    "export": Command("pipelines.evaluation.exporters", "export", "lay out a batch as GenEval and others expect it"),
    "evaluate": Command("pipelines.evaluation.coco", "evaluate", "compare what a model draws with captioned images"),
    "embed": Command("pipelines.embed", "embed", "embed the captions of a data set, for training to read"),
    "train-text": Command("pipelines.train_text", "train_text", "train a small T5 on the captions of a data set"),
    "train": Command("pipelines.train", "train", "train a stage on images with captions, resumably"),
    "assemble": Command(
        "pipelines.assemble", "assemble", "put trained stages and a text encoder into a cascade folder"
    ),
    "convert": Command("pipelines.convert", "convert", "convert DeepFloyd IF from diffusers' layout, or back"),
    "drawbench score": Command("pipelines.evaluation.score", "score", "have a judge score the images of a batch"),
    "drawbench rate": Command("pipelines.evaluation.rating.command", "rate", "ask people which of two they prefer"),
    "drawbench report": Command(
        "pipelines.evaluation.report.command", "report", "what judges and raters say, on a page"
    ),
    "info": Command("pipelines.info", "info", "say what a cascade folder holds, or how a PNG was made"),
}


def overview(group: str = "") -> str:
    """What there is: all commands, or those of a group, such as drawbench."""
    commands = {name: command for name, command in COMMANDS.items() if name.startswith(group)}
    width = max(map(len, commands))
    lines = [f"  {name:<{width}}  {command.help}" for name, command in commands.items()]
    return "\n".join(
        [
            f"usage: cascade {group or 'COMMAND'} ...",
            "",
            "Cascaded pixel-space text-to-image diffusion.",
            "",
            "commands:",
            *lines,
            "",
            "cascade COMMAND --help shows a command's options; cascade --version the version.",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return the exit status: 0 done, 1 not all of it, 2 wrong use or bad input, 130 interrupted.

    A command that can do a part of its work returns its status. Bad input (a ValueError, TypeError, OSError or
    MemoryError from the command) is reported as one line on stderr; CASCADE_TRACEBACK=1 lets the exception through.
    """
    name, rest = _split([*(sys.argv[1:] if argv is None else argv)])
    group, _, last = name.rpartition(" ")
    if last in ("-h", "--help"):
        print(overview(group))
        return 0
    if name == "--version":
        print(f"cascade {__version__}")
        return 0
    if not name:
        print(overview(), file=sys.stderr)
        return 2
    if name not in COMMANDS:
        return _fail(f"no command {name!r}{_suggestion(name)}")
    # What a CPU computes in large batches is given back and taken anew page by page: huge ones are fewer. torch reads
    # this when it first allocates.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    with _plain_warnings():
        return _run(name, rest)


def _split(words: list[str]) -> tuple[str, list[str]]:
    """The command's name, of one word or two, and what follows it."""
    length = 2 if words and words[0] in _groups() else 1
    return " ".join(words[:length]), words[length:]


def _groups() -> set[str]:
    """The first words of the commands that have two."""
    return {name.split()[0] for name in COMMANDS if " " in name}


def _run(name: str, arguments: list[str]) -> int:
    function = COMMANDS[name].load()
    import tyro  # after the overview, which must not wait for it

    try:
        status = tyro.cli(function, prog=f"cascade {name}", args=arguments)
    except (ValueError, TypeError, OSError, MemoryError) as error:
        if os.environ.get("CASCADE_TRACEBACK") == "1":
            raise
        return _fail(" ".join(str(error).split()) or type(error).__name__)
    except KeyboardInterrupt:
        print("\ncascade: interrupted", file=sys.stderr)
        return 130
    return status or 0


def _fail(message: str) -> int:
    print(f"cascade: error: {message}", file=sys.stderr)
    return 2


def _suggestion(name: str) -> str:
    group = [command for command in COMMANDS if command.startswith(f"{name.split()[0]} ")]
    misspelt = name not in _groups() and not name.startswith("-")
    nearest = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.5) if misspelt else []
    return f"; did you mean {nearest[0]!r}?" if nearest else f"; there are: {', '.join(group or COMMANDS)}"


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """Warnings meant for the user read as a line of the command, without the source line that raised them."""
    default = warnings.formatwarning

    def plain(message: Warning | str, category: type[Warning], *where: Any, **line: Any) -> str:
        if category is UserWarning:
            return f"cascade: warning: {message}\n"
        return default(message, category, *where, **line)

    warnings.formatwarning = plain
    try:
        yield
    finally:
        warnings.formatwarning = default


if __name__ == "__main__":
    sys.exit(main())
