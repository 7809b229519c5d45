"""Keywords of diffusers' pipelines that there are not here: whoever passes one is told what to write instead."""

from collections.abc import Callable, Mapping
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

LOADING = {
    "torch_dtype": "give dtype",
    "device_map": "call to, enable_model_cpu_offload or enable_sequential_cpu_offload on the pipeline",
    "text_encoder": "set text_encoder of the pipeline to None once the prompts are embedded",
    "requires_safety_checker": "give safety_checker=False to do without",
    "watermarker": "give watermark=False to do without",
}
DRAWING = {
    "noise_level": "give aug_level, a thousandth of it: aug_level=0.25 for noise_level=250",
    "original_image": "give it as image, with strength: the stages of one call hand on what they draw",
    "clean_caption": "give it to Pipeline.from_pretrained",
    "callback": "give callback_on_step_end",
    "callback_steps": "callback_on_step_end is called after every step, and told its number",
    "return_dict": "leave it out: the images are those of the output",
}


def instead(names: Mapping[str, str]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function: it answers these keywords with a TypeError that says what to do."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            for name in kwargs:
                if name in names:
                    raise TypeError(f"Pipeline takes no {name}, as diffusers' do: {names[name]}")
            return function(*args, **kwargs)

        return checked

    return decorate
