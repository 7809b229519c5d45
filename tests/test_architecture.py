"""The rules of the house, checked on every file: who may import whom, what importing may do, how long a file may be."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# pipelines -> cascade -> conditioning, weights
MAY_IMPORT = {
    "pipelines": {"pipelines", "cascade", "conditioning", "weights"},
    "cascade": {"cascade", "conditioning", "weights"},
    "conditioning": {"conditioning"},
    "weights": {"weights"},
}
# `from cascade import Pipeline`: the one edge that runs upward.
UPWARD = ("cascade/__init__.py", "pipelines")

MAX_LINES = 400
TEXT_SUFFIXES = {".py", ".md", ".toml", ".txt", ".json", ".cfg", ".yml", ".yaml"}

SOURCES = sorted(path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py"))
IDS = [path.relative_to(ROOT).as_posix() for path in SOURCES]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_packages(tree: ast.AST) -> set[str]:
    """Top-level names of all absolute imports, wherever they stand, importlib.import_module("...") included."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            found |= {str(arg.value).split(".")[0] for arg in node.args if isinstance(arg, ast.Constant)}
    return found


def run_python(code: str, *arguments: str) -> str:
    """Standard output of `code` in a fresh interpreter at the repository root that writes no bytecode."""
    result = subprocess.run(
        [sys.executable, "-B", "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def loaded_after(code: str) -> set[str]:
    """The top-level modules in sys.modules once `code` has run."""
    report = "\nimport json, sys; print('\\n' + json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    return set(json.loads(run_python(code + report).splitlines()[-1]))


def test_the_four_packages_are_here():
    assert {path.split("/")[0] for path in IDS} == set(MAY_IMPORT)


@pytest.mark.parametrize("path", SOURCES, ids=IDS)
def test_imports_run_one_way(path):
    relative = path.relative_to(ROOT)
    upward = imported_packages(ast.parse(path.read_text())) & set(MAY_IMPORT) - MAY_IMPORT[relative.parts[0]]
    if relative.as_posix() == UPWARD[0]:
        upward.discard(UPWARD[1])
    assert not upward, f"{relative} imports {sorted(upward)}"


def test_the_upward_edge_waits_until_it_is_asked_for():
    assert not {"pipelines", "torch"} & loaded_after("import cascade")


def test_a_foreign_pipelines_package_is_named(tmp_path):
    foreign = tmp_path / "pipelines" / "__init__.py"
    foreign.parent.mkdir()
    foreign.touch()
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
try:
    from cascade import Pipeline
except ImportError as error:
    print(error)
"""
    message = run_python(code)
    assert str(foreign) in message
    assert str(ROOT / "pipelines") in message


def test_the_import_finder_sees_every_form():
    code = (
        "import cascade.x\ndef f():\n from pipelines import y\n importlib.import_module('weights.z')\nfrom . import q"
    )
    assert imported_packages(ast.parse(code)) == {"cascade", "pipelines", "weights"}


@pytest.mark.parametrize("path", SOURCES, ids=IDS)
def test_files_stay_short(path):
    lines = len(path.read_text().splitlines())
    assert lines <= MAX_LINES, f"{lines} lines; a file that grows beyond {MAX_LINES} usually holds two ideas"


@pytest.mark.parametrize("code", ["import cascade", "from cascade import Pipeline"])
def test_import_is_light(code):
    assert not {"diffusers", "transformers", "accelerate"} & loaded_after(code)


def test_help_needs_no_torch():
    code = "from pipelines.cli import main\nassert main(['--help']) == 0\nassert main(['--version']) == 0"
    assert not {"torch", "numpy", "tyro"} & loaded_after(code)


# Runs in a fresh interpreter: imports the modules named on the command line and prints what they did beyond importing.
# Reading code and third-party files is fine; writing, deleting, sockets, processes and reading our own data are not.
AUDIT = """
import importlib, json, os, sys

root = os.path.join(os.getcwd(), "")
code = (".py", ".pyc", ".so", ".pyd", ".dylib", ".pth")
forbidden = ("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.mkdir", "os.remove", "os.rename",
             "os.rmdir", "os.truncate", "shutil.", "tempfile.", "urllib.", "http.")
installed = ("site-packages", ".egg-info")  # torch looks for plug-ins in the metadata of every distribution
seen = []

def hook(event, args):
    if event == "open":
        path, mode, flags = args
        path = os.fsdecode(path) if isinstance(path, (str, bytes)) else str(path)
        writes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)) or set(mode or "") & set("wax+")
        ours = os.path.abspath(path).startswith(root) and not any(other in path for other in installed)
        if (writes and path != os.devnull) or (ours and not path.endswith(code)):
            seen.append(f"{module}: open {path} {mode}")
    elif event.startswith(forbidden):
        seen.append(f"{module}: {event} {args}"[:300])

module = "start"
sys.addaudithook(hook)
for module in sys.argv[1:]:
    importlib.import_module(module)
print("\\n" + json.dumps(seen))
"""


def audit(*modules: str) -> list[str]:
    return json.loads(run_python(AUDIT, *modules).splitlines()[-1])


def test_importing_does_no_io():
    assert audit(*(module_name(path) for path in SOURCES if path.name != "__main__.py")) == []


@pytest.mark.parametrize(
    "statement",
    [
        "open('written', 'w')",
        "import socket; socket.socket().bind(('127.0.0.1', 0))",
        "import subprocess; subprocess.run(['true'])",
        "open('pyproject.toml').read()",
    ],
)
def test_the_audit_catches_io(statement, tmp_path, monkeypatch):
    statement = statement.replace("'written'", repr(str(tmp_path / "written")))
    (tmp_path / "guilty.py").write_text(statement + "\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    assert audit("guilty")


def text_files() -> list[Path]:
    roots = [*MAY_IMPORT, "tests", "benchmarks", "examples", "docs", ".ci"]
    inside = [path for name in roots for path in (ROOT / name).rglob("*") if "__pycache__" not in path.parts]
    files = [path for path in [*ROOT.iterdir(), *inside] if path.is_file()]
    return [path for path in files if path.suffix in TEXT_SUFFIXES or path.name in ("Makefile", "run")]


def test_no_path_of_one_machine():
    """Nothing committed depends on where one person's checkout, home or scratch folder lies."""
    homes = "|".join(("work", "root", "home", "Users", "tmp", "mnt"))
    absolute = re.compile(rf"(?<![\w.:/~)}}-])/(?:{homes})/\w+")
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match[0]}"
        for path in text_files()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        for match in absolute.finditer(line)
    ]
    assert not found
