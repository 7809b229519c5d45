"""The README's gallery: fixed prompts, seed 0, nothing left out."""

from benchmarks.quality.drawing import Setting
from benchmarks.quality.stored import IMAGES
from pipelines.images import grid

PROMPTS = (
    "a blue teapot",
    "a red snowman",
    "an orange duck",
    "a white rabbit",
    "a green cactus",
    "a yellow train",
    "a purple castle",
    "a turquoise rocket",
    "a pink mushroom",
    "a black hat",
    "an orange brick house",
    "a blue denim cup",
    "a red wooden chair",
    "a yellow checkered cube",
    "two green trees",
    "three red cones",
    "four yellow cups",
    "five blue cars",
    "a red car to the left of a blue house",
    "a yellow robot in front of a red castle",
    "a pink lamp on top of a red cube",
    "a green bottle behind a white teapot",
    "a small blue airplane",
    "a red cube on top of a blue cube on top of a green cube",
)
COLUMNS = 6


def draw(setting: Setting) -> None:
    """Write docs/images/gallery.jpg."""
    pipe = setting.pipeline()
    pictures = [pipe(prompt, seed=0).images[0] for prompt in PROMPTS]
    grid(pictures, COLUMNS).save(IMAGES / "gallery.jpg", quality=90)
    for row in range(0, len(PROMPTS), COLUMNS):
        print("; ".join(PROMPTS[row : row + COLUMNS]))
