"""Every command and snippet of README.md and of the pages in docs/ runs, or stands below with the reason why not.

Python blocks run in order and share their names, as if a reader pasted one after the other. Lines of ```bash blocks,
and the `$ ` lines of ```console blocks, are commands: `cascade ...` and `python ...` run in a scratch folder, again in
order, so that one may read what an earlier one wrote; `make ...` is checked with `make -n`; cloning and installing are
left out, and anything else is refused. The scratch folder shows the repository's examples/. What would train for
long is cut short by options of its own, which SHORTER adds.
"""

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ELSEWHERE = ("deepfloyd.md",)  # on small random weights: tests/test_deepfloyd_guide.py
PAGES = [ROOT / "README.md", *(p for p in sorted((ROOT / "docs").glob("*.md")) if p.name not in ELSEWHERE)]

# A whole command, or a line of a Python block -> why it is not run here. The line alone is left out, not its block.
NOT_RUN: dict[str, str] = {
    'pipe = Pipeline.from_pretrained("DeepFloyd/IF-I-XL-v1.0", upscalers=["DeepFloyd/IF-II-L-v1.0"], variant="fp16")': (
        "weights that are not ours: tests/test_deepfloyd_pipelines.py"
    ),
    "cascade batch toybox -o guided -n 8": "5,664 images",
    "cascade batch toybox -o unguided -n 8 --guidance 1": "5,664 images",
    'cascade drawbench score guided --judge "python my_judge.py" --name mine': "tests/test_scores.py has such a judge",
    "cascade drawbench rate guided unguided -o answers.sqlite": "serves until it is ended: tests/test_rating_page.py",
    "cascade drawbench report guided unguided --ratings answers.sqlite -o report": "tests/test_report.py has answers",
    "cascade evaluate photos -o fd-clip --guidance 1 1.5 2 3 5 --features inception:weights.pth"
    " --clip openai/clip-vit-base-patch32": "weights that are not ours: tests/test_coco.py",
    "cascade embed runs/emoji/pictures --text-encoder google/t5-v1_1-small -o runs/emoji/embeddings-small": (
        "weights that are not ours: tests/test_embed.py"
    ),
    "tensorboard --logdir runs/emoji": "serves until it is ended",
}

# What a command contains -> options that make it short here.
SHORTER = {
    "cascade train-text runs/emoji/pictures": "--steps 2",
    "examples/emoji/base.toml": "--set budget.steps=2 --set diffusion.batch_size=4 --set samples.steps=2",
    "examples/emoji/upscaler.toml": "--set budget.steps=2 --set diffusion.batch_size=4 --set samples.steps=2",
}

SETUP = ("git clone", "cd", "pip", "apt-get")
SLOW = ("training.md",)  # many commands, each of which takes seconds to start
EMOJI = ("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf", "/usr/share/unicode/emoji/emoji-test.txt")


@dataclass(frozen=True)
class Block:
    language: str
    line: int  # of its first line of content, from 1
    text: str


def blocks(markdown: str) -> list[Block]:
    """The fenced blocks, in order; `line` counts from the top of the file."""
    fence = re.compile(r"^(`{3,})(\w*)[^\n]*\n(.*?)^\1`*[ \t]*$", re.MULTILINE | re.DOTALL)
    return [Block(m[2], markdown.count("\n", 0, m.start(3)) + 1, m[3]) for m in fence.finditer(markdown)]


def commands(block: Block) -> list[str]:
    """The commands of a shell block: continuation lines joined, comments and output dropped."""
    lines = block.text.replace("\\\n", " ").splitlines()
    if block.language == "console":
        lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
    return [line.strip() for line in lines if shlex.split(line, comments=True)]


def kind(command: str) -> str:
    """What is done with a command: "skip", "make" or "run"; an AssertionError for one nobody knows how to check."""
    if command in NOT_RUN or command.startswith(SETUP):
        return "skip"
    first = shlex.split(command, comments=True)[0]
    if first in ("cascade", "python", "torchrun"):
        return "run"
    assert first == "make", f"{command!r} is neither run, nor checked, nor in NOT_RUN with a reason"
    return "make"


BLOCKS = {page: blocks(page.read_text(encoding="utf-8")) for page in PAGES}
COMMANDS = [
    pytest.param(page, command, id=f"{page.name}: {command}", marks=[pytest.mark.slow] if page.name in SLOW else [])
    for page, found in BLOCKS.items()
    for block in found
    if block.language in ("bash", "sh", "console")
    for command in commands(block)
]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("documents")


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_command(page, command, scratch):
    what = kind(command)
    if what == "skip":
        pytest.skip(NOT_RUN.get(command, "installs, or moves about"))
    if what == "make":
        command, where = re.sub(r"^make\b", "make -n", command), ROOT
    else:
        where = scratch / page.stem
        if not where.exists():
            where.mkdir()
            (where / "examples").symlink_to(ROOT / "examples")
        command = " ".join([command, *(options for part, options in SHORTER.items() if part in command)])
        if "runs/emoji" in command and not all(map(os.path.exists, EMOJI)):
            pytest.skip("apt-get install fonts-noto-color-emoji unicode-data")
    scripts = Path(sys.executable).parent
    assert what == "make" or (scripts / "cascade").exists(), "the console script is missing: pip install -e ."
    result = subprocess.run(
        ["bash", "-euc", command],
        cwd=where,
        env={**os.environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for block in BLOCKS[page]:
        if block.language == "python":
            lines = ["" if line.strip() in NOT_RUN else line for line in block.text.splitlines()]
            # Empty lines in front make a traceback name the line of the page.
            exec(compile("\n" * (block.line - 1) + "\n".join(lines), str(page), "exec"), names)


CONFIGS = [
    pytest.param(block, id=f"{page.name}: line {block.line}")
    for page, found in BLOCKS.items()
    for block in found
    if block.language == "toml"
]


@pytest.mark.parametrize("block", CONFIGS)
def test_configs_are_read(block, tmp_path, monkeypatch):
    from cascade.training.config import load_config

    monkeypatch.chdir(ROOT)
    (tmp_path / "config.toml").write_text(block.text)
    config = load_config(tmp_path / "config.toml")
    assert config.diffusion.batch_size % config.loop.accumulation == 0


def test_exceptions_are_not_stale():
    lines = {line.strip() for found in BLOCKS.values() for block in found for line in block.text.splitlines()}
    written = {param.values[1] for param in COMMANDS} | lines
    assert set(NOT_RUN) <= written, f"in NOT_RUN, but on no page: {sorted(set(NOT_RUN) - written)}"
    assert all(reason.strip() for reason in NOT_RUN.values())
    for part in SHORTER:
        assert any(part in param.values[1] for param in COMMANDS), f"in SHORTER, but on no page: {part}"


SAMPLE = """\
# Title
```bash
git clone https://example.org/x && cd x   # once
make demo PROMPT="a # cat"
# a comment
cascade generate "two \\
    cats" -o out.png
```
```console
$ cascade info out.png
prompt  two cats
```
```python
x = 1
```
"""


def test_the_parser_finds_blocks_and_commands():
    bash, console, python = blocks(SAMPLE)
    assert (bash.language, bash.line, console.language, python.line) == ("bash", 3, "console", 14)
    found = [*commands(bash), *commands(console)]
    assert [kind(command) for command in found] == ["skip", "make", "run", "run"]
    assert shlex.split(found[2])[2] == "two      cats"
    assert found[3] == "cascade info out.png"


@pytest.mark.parametrize("command", ["curl https://example.org", "rm -r x", "./run.sh"])
def test_unknown_commands_are_refused(command):
    with pytest.raises(AssertionError, match="NOT_RUN"):
        kind(command)
