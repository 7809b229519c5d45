"""How well the toybox detector judges: `python -m pipelines.evaluation.detector.validation` prints the table.

True renders of the suite's expected scenes, clean and spoilt, each judged by its own prompt and by another of its
category. Pictures are 256 px.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cascade.data.toybox.render import render
from cascade.data.toybox.scene import Scene, arrange
from pipelines.evaluation.detector.corruptions import blur, coarsen, jpeg, noise
from pipelines.evaluation.detector.network import FOLDER, SIZE, Detector
from pipelines.evaluation.judge import Found, judge
from pipelines.evaluation.suite import TOYBOX, Prompt, read_suite

LEAST = 150  # scenes of a category
SEED = 424245


def _same(value: float, images: Tensor) -> Tensor:
    return torch.full((len(images),), value)


CORRUPTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "clean": lambda images: images,
    "blur 1 px": lambda images: blur(images, _same(1.0, images)),
    "noise 0.05": lambda images: noise(images, _same(0.05, images), torch.Generator().manual_seed(0)),
    "JPEG 50": lambda images: jpeg(images, [50] * len(images)),
    "64 px": lambda images: coarsen(images, 64),
}
TEXTURELESS = ("64 px",)


@dataclass(frozen=True)
class Drawn:
    """A prompt, a scene of which its expectation is true, and that scene's picture (3 H W, uint8)."""

    prompt: Prompt
    scene: Scene
    pixels: Tensor


def draw(prompts: Sequence[Prompt], least: int = LEAST, seed: int = SEED) -> list[Drawn]:
    """At least `least` scenes of each category, as many of each of its prompts; the same for the same arguments."""
    sizes = Counter(prompt.category for prompt in prompts)
    wanted = [
        (prompt, turn)
        for turn in range(max(-(-least // size) for size in sizes.values()))
        for prompt in prompts
        if turn < -(-least // sizes[prompt.category])
    ]
    scenes = []
    for i, (prompt, _) in enumerate(wanted):
        if prompt.expected is None:
            raise ValueError(f"prompt {prompt.prompt!r} expects no scene; validate with the toybox suite")
        scenes.append(arrange(prompt.expected, np.random.default_rng([seed, i])))
    out = []
    for start in range(0, len(scenes), 8):
        pixels = ((render(scenes[start : start + 8], SIZE) + 1) * 127.5).round().byte()
        part = zip(wanted[start : start + 8], scenes[start : start + 8], pixels, strict=True)
        out += [Drawn(prompt, scene, picture) for (prompt, _), scene, picture in part]
    return out


def find(detector: Detector, drawn: Sequence[Drawn], corruption: str = "clean") -> list[list[Found]]:
    """What is found in each picture once it is spoilt by one of CORRUPTIONS."""
    found = []
    for start in range(0, len(drawn), 32):
        images = torch.stack([each.pixels for each in drawn[start : start + 32]]).float() / 127.5 - 1
        found += detector.find(CORRUPTIONS[corruption](images))
    return found


def right_shares(drawn: Sequence[Drawn], found: Sequence[Sequence[Found]], *, wrong: bool = False) -> dict[str, float]:
    """The share of right verdicts per category; with `wrong`, under the category's next prompt instead of its own."""
    categories: dict[str, list[int]] = defaultdict(list)
    for i, each in enumerate(drawn):
        categories[each.prompt.category].append(i)
    shares = {}
    for category, members in categories.items():
        verdicts = []
        for k, i in enumerate(members):
            expected = drawn[i].prompt.expected
            others = [drawn[j].prompt.expected for j in (*members[k + 1 :], *members[:k])]
            asked = next((e for e in others if e != expected), None) if wrong else expected
            if asked is not None:
                verdicts.append(judge(asked, found[i]).right)
        shares[category] = float(np.mean(verdicts)) if verdicts else float("nan")
    return shares


def textureless(drawn: Sequence[Drawn]) -> list[int]:
    """Which name no material: what 64 px can show."""
    return [
        i
        for i, each in enumerate(drawn)
        if each.prompt.expected and all(look.material == "plain" for look in each.prompt.expected.looks)
    ]


def validate(detector: Detector, drawn: Sequence[Drawn]) -> dict[str, dict[str, float]]:
    """Shares right by corruption ("wrong prompt" among them) and category; material prompts are left out at 64 px."""
    table = {}
    for corruption in CORRUPTIONS:
        kept = [drawn[i] for i in textureless(drawn)] if corruption in TEXTURELESS else drawn
        found = find(detector, kept, corruption)
        table[corruption] = right_shares(kept, found)
        if corruption == "clean":
            table["wrong prompt"] = right_shares(kept, found, wrong=True)
    return table


def mistakes(drawn: Sequence[Drawn], found: Sequence[Sequence[Found]]) -> Counter[str]:
    """What is wrong in how many pictures, and "noun: true -> found" and so on for things found at their places."""
    counts: Counter[str] = Counter()
    for each, things in zip(drawn, found, strict=True):
        if each.prompt.expected is not None:
            counts.update(judge(each.prompt.expected, things).wrong)
        if len(things) != len(each.scene.things):
            counts[f"number: {each.scene.description.kind} {len(each.scene.things)} -> {len(things)}"] += 1
            continue
        for thing in each.scene.things:
            nearest = min(
                things, key=lambda f: sum((a - b) ** 2 for a, b in zip(f.position, thing.position, strict=True))
            )
            for name in ("noun", "colour", "material"):
                true, seen = getattr(thing.look, name), getattr(nearest, name)
                if true != seen:
                    counts[f"{name}: {true} -> {seen}"] += 1
    return counts


def main(folder: Path = FOLDER, least: int = LEAST) -> None:
    """Print the shares right and the commonest mistakes. folder: the detector's; least: scenes of each category."""
    detector = Detector.from_pretrained(folder)
    drawn = draw(read_suite(TOYBOX), least)
    table = validate(detector, drawn)
    sizes = Counter(each.prompt.category for each in drawn)
    print(f"{'':14}{'scenes':>8}" + "".join(f"{name:>14}" for name in table))
    for category, size in sizes.items():
        cells = "".join(
            f"{100 * shares[category]:13.1f}%" if category in shares else f"{'-':>14}" for shares in table.values()
        )
        print(f"{category:14}{size:>8}{cells}")
    for corruption in CORRUPTIONS:
        common = mistakes(drawn, find(detector, drawn, corruption)).most_common(14)
        print(f"{corruption}: " + "; ".join(f"{what} {count}" for what, count in common))


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
