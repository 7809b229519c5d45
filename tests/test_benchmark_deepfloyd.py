"""benchmarks/deepfloyd.py at miniature size: the tables it prints, and that both sides draw the same."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))  # no installed package

import deepfloyd
import deepfloyd_contest as contest


@pytest.mark.slow
@pytest.mark.parametrize("network", ["I-M", "II-M"])
def test_the_tables(network: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(contest.CHANNELS, network, [64] * len(contest.CHANNELS[network]))
    monkeypatch.setattr(contest, "TEXT_WIDTH", 64)
    deepfloyd.main(
        networks=(network,), divide=1, dtypes=("float32",), batches=(1,), side=32, steps=2, runs=1, device="cpu"
    )
    lines = capsys.readouterr().out.splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith(f"| {network}")]
    (compared, *undone) = rows
    assert compared[1:4] == ["float32", "eager", "1"]
    assert all(float(cell) > 0 for cell in compared[4:6])
    assert float(compared[-1]) < 1e-2  # of the pixel that differs most
    assert [row[2] for row in undone] == list(deepfloyd.UNDONE)
    assert all(float(row[3].split()[0]) > 0 for row in undone)


def test_widths_without_whole_heads_are_refused() -> None:
    with pytest.raises(SystemExit, match="--divide 6 leaves no whole heads of 64 channels in I-M; try 1 or 3"):
        deepfloyd.main(networks=("I-M",), divide=6, device="cpu")
