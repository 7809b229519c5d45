"""What is shipped: the wheel holds the packages and their data and nothing else; the pins cover the dependencies."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import cascade

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("cascade", "pipelines", "conditioning", "weights")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def normalized(requirement: str) -> str:
    return re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-")


PINS = {
    normalized(line): line.split("==")[1]
    for line in (ROOT / "constraints.txt").read_text().splitlines()
    if line and not line.startswith("#")
}


def test_every_dependency_is_pinned():
    wanted = {normalized(line) for line in [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"]]}
    assert wanted <= set(PINS)


def test_nothing_that_breaks_a_cpu_torch_is_pinned():
    assert not [name for name in PINS if name.startswith(("torchvision", "nvidia", "triton"))]
    assert "+" not in PINS["torch"], "a local version would exclude every other build"


@pytest.mark.slow
@pytest.mark.skipif(
    not (ROOT / "README.md").exists(), reason="there is no README.md yet, and the wheel describes itself by it"
)
def test_the_wheel_holds_the_packages_and_their_data(tmp_path):
    source = tmp_path / "source"
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        str(source),
    ]
    subprocess.run(build, check=True, capture_output=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.startswith(f"cascade_t2i-{cascade.__version__}-")
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert inside == expected
