"""`cascade info`: what a cascade holds and needs, or how a PNG was made."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

if TYPE_CHECKING:
    from pipelines.contents import Contents


def info(
    what: tyro.conf.Positional[str | None] = None,
    upscalers: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["-u"])] = (),
    memory: bool = False,
    max_batch_size: int = 1,
) -> None:
    """Describe a cascade (stages, parameters, cost) or a PNG that cascade wrote (how to draw it again).

    Args:
        what: A folder, a hub id, or a PNG; the embedded default if left out.
        upscalers: The stages after a DeepFloyd IF model, and a Stable Diffusion upscaler after any.
        memory: Say what it takes on the device, all at once and offloaded, without loading or fetching it.
        max_batch_size: How many images to draw at a time, for --memory.
    """
    if what is not None and Path(what).is_file():
        print(describe_png(Path(what)))
        return
    if max_batch_size < 1:
        raise ValueError(f"--max-batch-size is {max_batch_size}; expected at least 1")
    from pipelines.contents import read_contents

    contents = read_contents(what, upscalers)
    if memory:
        from pipelines.memory import describe_memory, parts

        print(describe_memory(parts(contents, max_batch_size), max_batch_size))
    else:
        print(describe_cascade(contents, what))


def describe_png(path: Path) -> str:
    """How an image was made, ending in the command that makes it again. Raises ValueError if it does not say."""
    from pipelines.again import command
    from pipelines.metadata import read_png

    metadata = read_png(path)
    images = metadata.get("grid", [metadata])
    lines = []
    for one in images:
        lines += [f"{one['prompt']}", f"  seed {one['seed']}, {one['width']} x {one['height']}, model {one['model']}"]
        for name, stage in list(one["stages"].items())[one["start_stage"] : one["stop_after"] + 1]:
            lines.append(
                f"  {name}: {stage['sampler']}, {stage['steps']} steps, guidance {stage['guidance_scale']:g}, "
                f"{stage['thresholding']['kind']} thresholding, aug_level {stage['aug_level']:g}"
            )
        if one["stop_after"] == len(one["stages"]):
            upscaler = one["upscaler"]
            lines.append(
                f"  upscaler: {upscaler['steps']} steps, guidance {upscaler['guidance_scale']:g}, "
                f"aug_level {upscaler['aug_level']:g}"
            )
    return "\n".join([*lines, "", "again:", f"  {command(metadata, path.name)}"])


def describe_cascade(contents: "Contents", name: str | None) -> str:
    """The stages of a cascade, their parameters, and the GFLOPs of a step and of an image at the defaults.

    A floating-point operation is an addition or a multiplication: one multiply-add is two.
    """
    from cascade.flops import image_flops, step_flops

    lines = [f"{'toybox, the embedded default' if name is None else name}", ""]
    lines.append(
        f"{'stage':<12}{'draws':>11}{'parameters':>12}{'GFLOPs/step':>13}{'steps':>7}{'guidance':>10}{'GFLOPs/image':>14}"
    )
    total = 0.0
    for stage in contents.stages:
        config = stage.config
        parameters = sum(parameter.numel() for parameter in stage.parameters())
        per_image = image_flops(stage) / 1e9
        total += per_image
        size = f"{config.resolution[1]} x {config.resolution[0]}"
        sampling = config.sampling
        lines.append(
            f"{config.name:<12}{size:>11}{parameters / 1e6:>10.1f} M{step_flops(stage) / 1e9:>13.2f}{sampling.steps:>7}"
            f"{sampling.guidance_scale:>10g}{per_image:>14.1f}"
        )
    lines.append(f"{'in all':<12}{'':>53}{total:>14.1f}")
    text = contents.text
    if text is not None:
        lines += ["", f"text encoder: {text.get('model') or 'in the folder'}, at most {text['max_length']} tokens"]
        if text.get("vocabulary"):
            lines.append(f"words it knows: {', '.join(text['vocabulary'])}")
    for extra, folder in (("upscaler", contents.upscaler), ("safety checker", contents.safety_checker)):
        if folder is not None:
            lines.append(f"{extra}: in {folder}")
    lines.append(f"licence: {contents.licence}")
    return "\n".join(lines)
