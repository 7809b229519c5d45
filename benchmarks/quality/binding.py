"""Does the text encoder say what belongs together? A network sees its tokens as a set, without positions: whose colour
a colour is, and which thing stands on which, must be in the words' own encodings."""

import numpy as np
import torch
from torch import Tensor

from benchmarks.quality.drawing import Setting
from benchmarks.quality.stored import store
from cascade.data.toybox import caption, sample_description
from cascade.data.toybox.description import COLOURS
from cascade.data.toybox.nouns import NOUNS
from conditioning.text import TextEncoder
from weights.hub import EMBEDDED

CAPTIONS, FITTED = 3000, 2000
KINDS = {"left": 1.0, "front": 1.0, "on": 1.0, "stack": 1.0}
LOOKS = ("noun", "colour")  # in which the things of a caption differ
RIDGE = 1e-3


def measure(setting: Setting) -> None:
    """Of each thing's noun in captions of two and three things, all of other nouns and colours: its colour and its
    place in the relation, by a linear map fitted on other captions; and the same from the noun alone."""
    encoder = TextEncoder.from_pretrained(setting.model or EMBEDDED, dtype=torch.float32)
    rng, said = np.random.default_rng(0), []
    while len(said) < CAPTIONS:
        description = sample_description(rng, KINDS, "any")
        if all(len({getattr(look, name) for look in description.looks}) == len(description.looks) for name in LOOKS):
            said.append((description, caption(description, rng)))
    text = encoder([line for _, line in said])
    rows, labels, things = [], [], []
    for number, (description, line) in enumerate(said):
        ids = encoder.tokenizer.ids(line)
        for place, look in enumerate(description.looks):
            noun = encoder.tokenizer.ids(look.noun)
            if len(noun) == 1 and ids.count(noun[0]) == 1:  # not a synonym
                rows.append((number, ids.index(noun[0])))
                labels.append((list(COLOURS).index(look.colour), place, list(NOUNS).index(look.noun)))
                things.append(len(description.looks))
    number, at = torch.tensor(rows).T
    colour, place, noun = torch.tensor(labels).T
    encodings = {"encoding": text.tokens[number, at], "noun alone": torch.nn.functional.one_hot(noun).float()}
    fitted = number < FITTED
    store(
        "binding",
        {
            "nouns": int((~fitted).sum()),
            "chance": float((1 / torch.tensor(things)[~fitted]).mean()),
            "told": {
                name: {what: told(x, y, fitted) for what, y in (("colour", colour), ("place", place))}
                for name, x in encodings.items()
            },
        },
    )


def told(x: Tensor, labels: Tensor, fitted: Tensor) -> float:
    """The share of labels (N) that least squares on the rows ``fitted`` (N, bool) of x (N D) tells of the others."""
    x = torch.cat([(x - x.mean(dim=0)) / x.std(dim=0).clamp(min=1e-6), torch.ones(len(x), 1)], dim=1).double()
    wanted = torch.nn.functional.one_hot(labels).double()
    square = x[fitted].T @ x[fitted]
    weights = torch.linalg.solve(
        square + RIDGE * square.diagonal().mean() * torch.eye(len(square), dtype=square.dtype),
        x[fitted].T @ wanted[fitted],
    )
    return float(((x[~fitted] @ weights).argmax(dim=1) == labels[~fitted]).double().mean())
