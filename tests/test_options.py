"""The options that commands share."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.options import Drawing, named_as_options
from weights.store import WeightsError

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


@pytest.mark.parametrize(
    "message",
    [
        "no run.json in out/batch_size, batch_size/out, C:\\batch_size, batch_size.d or my-batch_size",
        "seed is 'the artist\\'s batch_size' there and \"batch_size's\" here",
        "prompts[0] is 'a batch_size as large as a house'",
    ],
)
@pytest.mark.parametrize("kind", [TypeError, ValueError])
def test_what_the_user_wrote_stays(kind, message):
    with pytest.raises(kind) as caught, named_as_options():
        raise kind(f"{message}; stop_after is the stage's, aug_level isn't")
    assert str(caught.value) == f"{message}; --stop-after is the stage's, --aug-level isn't"
    assert type(caught.value) is kind


def test_a_folder_that_is_called_like_an_option():
    with pytest.raises(WeightsError, match=r"^no cascade\.json in batch_size$"), named_as_options():
        raise WeightsError("no cascade.json in batch_size")


def test_other_errors_pass_as_they_are():
    error = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "batch")
    with pytest.raises(UnicodeDecodeError) as caught, named_as_options():
        raise error
    assert caught.value is error
