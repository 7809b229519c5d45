"""`cascade generate`: prompts to PNG files that say how they were made."""

from pathlib import Path
from typing import Annotated, Any

import tyro

from pipelines.options import Drawing, Loading, named_as_options
from pipelines.process import Process


@named_as_options()
def generate(
    prompts: tyro.conf.Positional[tuple[str, ...]],
    loading: Loading,
    drawing: Drawing,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("out.png"),
    images: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 1,
    grid: bool = False,
    seed: int | None = None,
    guidance: tuple[float, ...] = (),
    image: Path | None = None,
    start_stage: int = 0,
    max_batch_size: int = 8,
) -> None:
    """Draw images from prompts.

    Args:
        prompts: What to draw, each prompt quoted.
        output: The PNG to write; several images become NAME-0.png, NAME-1.png, ...
        images: How many images per prompt.
        grid: Put all images into one PNG; with several images per prompt, a row per prompt.
        seed: Image k has seed + k; drawn, and kept in the PNG, if left out.
        guidance: Guidance scale, one for all stages or one per stage; 1 is off.
        image: A low-resolution image for --start-stage to enlarge.
        start_stage: The first stage to run.
        max_batch_size: How many images to draw at a time; halved where memory runs out.
    """
    if not prompts:
        raise ValueError('give at least one prompt, in quotes: cascade generate "a red cube"')
    if output.suffix.lower() != ".png":
        raise ValueError(f"--output is {output}; expected a name ending in .png")
    if not output.absolute().parent.is_dir():
        raise ValueError(f"there is no folder {output.absolute().parent} to write {output.name} into; make it first")
    picture = None if image is None else _open(image)

    from pipelines.metadata import save_png

    options = drawing.options(guidance)
    out = loading.pipeline(Process())(
        list(prompts),
        drawing.negative_prompt,
        num_images_per_prompt=images,
        seed=seed,
        image=picture,
        start_stage=start_stage,
        max_batch_size=max_batch_size,
        **options,
    )
    if image is not None:
        for entry in out.metadata:
            entry["image"] = str(image)
    if grid:
        from pipelines.images import grid as arranged

        page = arranged(out.images, images if images > 1 and len(prompts) > 1 else None)
        whole = {**out.metadata[0], "prompts": list(prompts), "images_per_prompt": images, "grid": out.metadata}
        save_png(page, output, whole)
        print(output)
        return
    for k, (drawn, metadata) in enumerate(zip(out.images, out.metadata, strict=True)):
        path = output if len(out.images) == 1 else output.with_stem(f"{output.stem}-{k}")
        save_png(drawn, path, metadata)
        print(path)


def _open(path: Path) -> Any:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            image.load()
            return image.copy()
    except UnidentifiedImageError:
        raise ValueError(f"{path} is no image that can be read") from None
