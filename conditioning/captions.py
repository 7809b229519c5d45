"""What becomes of a prompt before it is tokenized: an encoder is given prompts as its cascade was trained on them."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Literal, get_args

from conditioning.silence import no_torchvision_advice

Preprocessing = Literal["none", "lower", "clean"]


def check_preprocessing(kind: Preprocessing) -> None:
    """Raise ValueError for a kind that there is not, or for "clean" without the packages it needs."""
    if kind not in get_args(Preprocessing):
        raise ValueError(f"preprocessing is {kind!r}; expected one of {', '.join(get_args(Preprocessing))}")
    missing = [package for package in ("ftfy", "bs4") if find_spec(package) is None] if kind == "clean" else []
    if missing:
        raise ValueError(
            f"caption cleaning needs {' and '.join(missing)}, not installed here: pip install ftfy beautifulsoup4, or "
            "leave clean_caption out"
        )


def preprocess(prompt: str, kind: Preprocessing) -> str:
    """The prompt itself; in lower case without outer blanks; or "clean", as DeepFloyd IF's captions were: twice through
    diffusers' cleaning, without addresses, file names, markup and the like.
    """
    if kind == "clean":
        with no_torchvision_advice():
            from diffusers.pipelines.deepfloyd_if.pipeline_if import IFPipeline

        for _ in range(2):
            # A method that needs no instance, only the class's regular expression.
            prompt = IFPipeline._clean_caption(IFPipeline, prompt)  # pyright: ignore[reportArgumentType]
        return prompt
    return prompt.lower().strip() if kind == "lower" else prompt
