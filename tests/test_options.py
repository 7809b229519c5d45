"""The options that commands share."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.options import Drawing, named_as_options

HELP = """
import sys
from pipelines.cli import main
for name in ("generate", "batch", "evaluate"):
    try:
        main([name, "--help"])
    except SystemExit:
        pass
print("torch" in sys.modules)
"""


def test_help_waits_for_no_model():
    root = Path(__file__).resolve().parents[1]
    shown = subprocess.run([sys.executable, "-c", HELP], cwd=root, capture_output=True, text=True, check=True).stdout
    for option in ("--model", "-u", "--no-watermark", "--offload", "--height", "--aug-level", "--stop-after"):
        assert shown.count(f" {option} ") == 3, option  # without a prefix, in each of the three
    assert shown.endswith("False\n")


def test_nothing_one_value_and_several():
    drawing = Drawing(steps=(32, 16), sampler=("ddim",), timesteps=("own", "9,5,0"))
    assert drawing.options([2.0, 1.0]) == {
        "height": None,
        "width": None,
        "num_inference_steps": [32, 16],
        "timesteps": [None, [9, 5, 0]],
        "guidance_scale": [2.0, 1.0],
        "thresholding": None,
        "aug_level": None,
        "sampler": "ddim",
        "stop_after": None,
    }


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("num_images_per_prompt is 0", "--images is 0"),
        ("add stop_after=1, which", "add --stop-after=1, which"),
        ("seed is 1 there; images_per_prompt is 2 there", "seed is 1 there; --images is 2 there"),
        ("stages.x.guidance_scale is 1 there", "stages.x.guidance_scale is 1 there"),
    ],
)
def test_errors_name_options(message, shown):
    with pytest.raises(ValueError, match=f"^{re.escape(shown)}$"), named_as_options():
        raise ValueError(message)


def test_other_errors_pass_as_they_are():
    error = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "batch")
    with pytest.raises(UnicodeDecodeError) as caught, named_as_options():
        raise error
    assert caught.value is error
