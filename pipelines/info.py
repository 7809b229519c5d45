"""`cascade info`: what a cascade's folder holds, or how a PNG was made."""

from pathlib import Path

import tyro


def info(what: tyro.conf.Positional[str | None] = None) -> None:
    """Describe a cascade (stages, parameters, cost) or a PNG that cascade wrote (how to draw it again).

    Args:
        what: A folder, a hub id, or a PNG; the embedded default if left out.
    """
    if what is not None and Path(what).is_file():
        print(describe_png(Path(what)))
    else:
        print(describe_cascade(what))


def describe_png(path: Path) -> str:
    """How an image was made, ending in the command that makes it again. Raises ValueError if it does not say."""
    from pipelines.metadata import command, read_png

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
    return "\n".join([*lines, "", "again:", f"  {command(metadata, path.name)}"])


def describe_cascade(model: str | None) -> str:
    """The stages of a cascade, their parameters, and the GFLOPs of a step and of an image at the defaults.

    A floating-point operation is an addition or a multiplication: one multiply-add is two.
    """
    import torch

    from cascade.build import build_stage, load_config
    from cascade.flops import image_flops, step_flops
    from weights.hub import resolve
    from weights.store import read_manifest

    folder = resolve(model)
    manifest = read_manifest(folder)
    lines = [f"{'toybox, the embedded default' if model is None else model}", ""]
    lines.append(
        f"{'stage':<12}{'draws':>11}{'parameters':>12}{'GFLOPs/step':>13}{'steps':>7}{'guidance':>10}{'GFLOPs/image':>14}"
    )
    total = 0.0
    for name in manifest["stages"]:
        config = load_config(folder, name)
        with torch.device("meta"):
            stage = build_stage(config)
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
    text = manifest["text_encoder"]
    if text is not None:
        lines += ["", f"text encoder: {text.get('model') or 'in the folder'}, at most {text['max_length']} tokens"]
        if text.get("vocabulary"):
            lines.append(f"words it knows: {', '.join(text['vocabulary'])}")
    lines.append(f"licence: {manifest['licence']}")
    return "\n".join(lines)
