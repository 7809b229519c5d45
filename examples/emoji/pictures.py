"""Colour emoji as a folder of pictures with captions: Noto's bitmaps, and the names that Unicode gives them.

    apt-get install fonts-noto-color-emoji unicode-data
    python examples/emoji/pictures.py runs/emoji/pictures --groups Smileys Animals Food

The groups are Unicode's; without any, all are taken. Emoji are of one character each: flags, skin tones and families
are sequences of several, which take a text shaper to draw.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import tyro
from PIL import Image, ImageDraw, ImageFont

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
NAMES = Path("/usr/share/unicode/emoji/emoji-test.txt")
STRIKE = 109  # px, the one size that the font has its bitmaps in
SIDE = 136  # px: the bitmaps are 136 x 128
VARIATION = "\ufe0f"  # asks for the coloured form, and has no picture

GROUP = "# group: "
LINE = re.compile(r"([0-9A-F ]+?) *; fully-qualified *# \S+ E[\d.]+ (.+)")


def names(text: str) -> Iterator[tuple[str, str, str]]:
    """(group, emoji, its name) for those of a single character, from the text of Unicode's emoji-test.txt."""
    group = ""
    for line in text.splitlines():
        if line.startswith(GROUP):
            group = line.removeprefix(GROUP)
        elif found := LINE.fullmatch(line):
            emoji = "".join(chr(int(code, 16)) for code in found[1].split()).removesuffix(VARIATION)
            if len(emoji) == 1:
                yield group, emoji, found[2]


def picture(emoji: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """SIDE x SIDE px on a transparent ground; empty if the font does not have it."""
    image = Image.new("RGBA", (SIDE, SIDE))
    left, top, right, bottom = font.getbbox(emoji)
    middle = ((SIDE - right - left) // 2, (SIDE - bottom - top) // 2)
    ImageDraw.Draw(image).text(middle, emoji, font=font, embedded_color=True)
    return image


def main(
    folder: tyro.conf.Positional[Path], groups: tuple[str, ...] = (), font: Path = FONT, names_from: Path = NAMES
) -> None:
    """Write a PNG per emoji, and metadata.jsonl with their captions.

    Args:
        folder: To write into.
        groups: The first words of Unicode's groups, such as Smileys, Animals, Food, Travel; all if left out.
        font: NotoColorEmoji.ttf, with bitmaps (CBDT).
        names_from: Unicode's emoji-test.txt.
    """
    for path, package in ((font, "fonts-noto-color-emoji"), (names_from, "unicode-data")):
        if not path.is_file():
            raise SystemExit(f"no file {path}: apt-get install {package}, or say where it is")
    strike, lines = ImageFont.truetype(font, STRIKE), []
    named = [(group.split()[0], emoji, name) for group, emoji, name in names(names_from.read_text(encoding="utf-8"))]
    known = dict.fromkeys(group for group, _, _ in named)
    if unknown := set(groups) - set(known):
        raise SystemExit(f"no group {', '.join(unknown)}; there are {', '.join(known)}")
    folder.mkdir(parents=True, exist_ok=True)
    for group, emoji, name in named:
        drawn = picture(emoji, strike)
        if group in (groups or known) and drawn.getbbox() is not None:
            file = f"{ord(emoji):x}.png"
            drawn.save(folder / file)
            lines.append(json.dumps({"file_name": file, "text": name}) + "\n")
    (folder / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
    print(f"{folder}: {len(lines)} emoji")


if __name__ == "__main__":
    tyro.cli(main)
