"""The model card of a cascade's folder: what it is, what it was made from, how to use it."""

from collections.abc import Mapping, Sequence
from typing import Any

from cascade.stage import Stage


def model_card(name: str, stages: Sequence[Stage], manifest: Mapping[str, Any]) -> str:
    """Markdown, from the cascade itself and its manifest alone."""
    lines = [
        f"# {name}",
        "",
        "A cascade of pixel-space diffusion stages, for Cascade (`pip install cascade-t2i`).",
        "",
        "```python",
        "from cascade import Pipeline",
        "",
        f'pipe = Pipeline.from_pretrained("{name}")  # this folder',
        "```",
        "",
        "| stage | draws | enlarges | parameters | prediction | sampler | steps | guidance |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for stage in stages:
        config, sampling = stage.config, stage.config.sampling
        low = "x".join(map(str, config.low_resolution)) if config.low_resolution else "-"
        parameters = sum(parameter.numel() for parameter in stage.parameters())
        lines.append(
            f"| {config.name} | {'x'.join(map(str, config.resolution))} | {low} | {parameters / 1e6:.1f} M | "
            f"{config.prediction} | {sampling.sampler} | {sampling.steps} | {sampling.guidance_scale:g} |"
        )
    text = manifest["text_encoder"]
    if text is not None and text.get("vocabulary"):
        lines += ["", f"Words it was trained on: {', '.join(text['vocabulary'])}."]
    if manifest["provenance"]:
        lines += ["", "What it was made by stands under `provenance` in cascade.json."]
    lines += ["", f"Licence: {manifest['licence'] or 'not stated'}.", ""]
    return "\n".join(lines)
