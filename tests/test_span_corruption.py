"""Text-only pre-training: the tokenizer, span corruption against its definition, and a T5 trained on the spot."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade.data.text import plain_text
from cascade.training.span_corruption import IGNORED, OFFSETS, SmallT5, SpanCorruption, corrupt, pack
from cascade.training.tokenizer import train_tokenizer
from conditioning import TextEncoder, Tokenizer
from conditioning.tokenizer import EOS, PAD

COLOURS = ("red", "blue", "green", "yellow", "turquoise", "purple")
NOUNS = ("car", "house", "ball", "snowman", "rocket")
CAPTIONS = [f"a {c} {n} on top of a {d} {m}" for c in COLOURS for n in NOUNS for d in COLOURS for m in NOUNS if c != d]
PLAIN = [
    "Return the length of the longest line.",
    "The file must be open, and it stays open afterwards.",
    "This method is called once for every node of the tree; a subclass may override it to keep its own account.",
]
TINY = SmallT5(d_model=32, encoder_layers=1, decoder_layers=1, heads=2, d_kv=16, d_ff=48)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return train_tokenizer(CAPTIONS + PLAIN, tmp_path_factory.mktemp("tokenizer"), vocab_size=420)


def test_the_tokenizer_is_deterministic_and_keeps_frequent_words_whole(tokenizer: Tokenizer, tmp_path: Path) -> None:
    again = train_tokenizer(iter(CAPTIONS + PLAIN), tmp_path, vocab_size=420)
    assert (tmp_path / "spiece.model").read_bytes() == again._model == tokenizer._model
    for word in (*COLOURS, *NOUNS, "top"):
        assert tokenizer.words(tokenizer.ids(word.upper())) == [f"\u2581{word}"]
    assert tokenizer.size <= 420
    with pytest.raises(ValueError, match=r"vocab_size is 300.*expected at least 323"):
        train_tokenizer(CAPTIONS, tmp_path, vocab_size=300)


@given(ids=st.lists(st.integers(3, 200), min_size=1, max_size=120), seed=st.integers(0, 2**32))
@settings(max_examples=100)
def test_span_corruption_follows_its_definition(tokenizer: Tokenizer, ids: list[int], seed: int) -> None:
    inputs, targets = corrupt(ids, tokenizer, np.random.default_rng(seed))
    assert (inputs, targets) == corrupt(ids, tokenizer, np.random.default_rng(seed))
    assert inputs[-1] == targets[-1] == EOS
    lowest = tokenizer.pieces
    sentinels = [i for i in inputs if i >= lowest]
    assert sentinels == [tokenizer.size - 1 - k for k in range(len(sentinels))]
    assert [i for i in targets if i >= lowest] == sentinels

    noise = min(max(round(0.15 * len(ids)), 1), max(len(ids) - 1, 1))
    assert len(targets) == noise + len(sentinels) + 1
    assert len(sentinels) == max(round(noise / 3), 1)
    assert all(not (a >= lowest and b >= lowest) for a, b in pairwise(inputs))

    restored: list[int] = []
    for i in inputs[:-1]:
        if i < lowest:
            restored.append(i)
        else:
            span = targets[targets.index(i) + 1 :]
            length = next(n for n, j in enumerate(span) if j >= lowest or n == len(span) - 1)
            assert length >= 1
            restored += span[:length]
    assert restored == ids


def test_every_position_is_masked_equally_often_or_nearly(tokenizer: Tokenizer) -> None:
    rng, counts = np.random.default_rng(0), np.zeros(10)
    for _ in range(4000):
        inputs, _targets = corrupt(list(range(3, 13)), tokenizer, rng)
        counts += [i not in inputs for i in range(3, 13)]
    # One span of two tokens, anywhere: the two ends are in one span, all other places in two.
    assert np.allclose(counts / 4000, [1 / 9, *[2 / 9] * 8, 1 / 9], atol=0.03)
    with pytest.raises(ValueError, match="empty line"):
        corrupt([], tokenizer, rng)


def test_packing_keeps_every_line_whole(tokenizer: Tokenizer) -> None:
    rng = np.random.default_rng(0)
    pairs = [corrupt(list(rng.integers(3, 200, n)), tokenizer, rng) for n in (5, 20, 11, 29, 1, 8)]
    packed = pack(pairs, 32)
    assert packed.inputs.shape[1] <= 32
    for i, (inputs, targets) in enumerate(pairs):
        assert packed.inputs[packed.input_lines == i + 1].tolist() == inputs
        assert packed.targets[packed.target_lines == i + 1].tolist() == targets
        assert packed.decoder_inputs[packed.target_lines == i + 1].tolist() == [PAD, *targets[:-1]]
    assert (packed.inputs[packed.input_lines == 0] == PAD).all()
    assert (packed.targets[packed.target_lines == 0] == IGNORED).all()


def make(tokenizer: Tokenizer, **kwargs: object) -> SpanCorruption:
    return SpanCorruption(CAPTIONS, PLAIN, tokenizer, TINY, **{"batch_size": 16, "max_length": 24, **kwargs})


def test_the_packed_loss_is_transformers_own(tokenizer: Tokenizer) -> None:
    """Against T5ForConditionalGeneration line by line, unpacked: nothing passes between lines or from padding.

    To that comes how badly the encoder's output tells each token it was given, and those around it.
    """
    task = make(tokenizer)
    batch, spans, count, kept, inputs = task.batch(3), 0.0, 0, 0.0, 0
    around: dict[int, list[float]] = {offset: [] for offset in OFFSETS}
    task.model.eval()
    with torch.no_grad():
        for line in range(1, 17):
            ids = batch.inputs[batch.input_lines == line][None]
            labels = batch.targets[batch.target_lines == line][None]
            spans += task.model(input_ids=ids, labels=labels).loss.item() * labels.numel()
            count += labels.numel()
            encoded = task.model.encoder(input_ids=ids).last_hidden_state[0]
            scores = encoded @ task.model.shared.weight.T
            kept -= scores.log_softmax(dim=1).gather(1, ids.T).sum().item()
            told = task.neighbours(encoded).unflatten(1, (len(OFFSETS), -1)) @ task.model.shared.weight.T
            for at in range(ids.numel()):
                for which, offset in enumerate(OFFSETS):
                    if 0 <= at + offset < ids.numel():
                        around[offset].append(-told[at, which].log_softmax(dim=0)[ids[0, at + offset]].item())
            inputs += ids.numel()
        loss, figures = task.loss(batch)
    assert list(figures) == ["target_tokens", "span_loss", "kept_loss", "around_loss"]
    assert figures["target_tokens"] == count
    assert figures["span_loss"] == pytest.approx(spans / count, rel=1e-5)
    assert figures["kept_loss"] == pytest.approx(kept / inputs, rel=1e-5)
    assert figures["around_loss"] == pytest.approx(np.mean([np.mean(each) for each in around.values()]), rel=1e-5)
    assert loss.item() == pytest.approx(sum(figures[name] for name in list(figures)[1:]), rel=1e-6)


def test_a_batch_is_a_pure_function_of_seed_and_step(tokenizer: Tokenizer) -> None:
    a, b, other = make(tokenizer), make(tokenizer), make(tokenizer, seed=1)
    b.batch(0)
    assert torch.equal(a.batch(5).inputs, b.batch(5).inputs)
    assert torch.equal(a.model.shared.weight, b.model.shared.weight)
    assert not torch.equal(a.batch(5).inputs, a.batch(6).inputs)
    assert not torch.equal(a.batch(5).inputs, other.batch(5).inputs)
    assert not torch.equal(a.model.shared.weight, other.model.shared.weight)


def test_the_share_of_captions_and_the_window_hold(tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match="packs a whole batch"):
        make(tokenizer).batch(0, range(8))
    long = make(tokenizer, caption_share=0.0, max_length=8).batch(0)
    lengths = torch.bincount(long.input_lines.flatten())[1:]
    assert lengths.max() <= 8 + 1
    with pytest.raises(ValueError, match=r"caption_share is 1\.5; expected 0 to 1"):
        make(tokenizer, caption_share=1.5)
    with pytest.raises(ValueError, match="there are no captions"):
        SpanCorruption([], PLAIN, tokenizer, TINY)
    with pytest.raises(ValueError, match="there is no plain text"):
        SpanCorruption(CAPTIONS, [" "], tokenizer, TINY)
    with pytest.raises(ValueError, match="d_model is 0"):
        SmallT5(d_model=0)


def trained(task: SpanCorruption, steps: int) -> list[dict[str, float]]:
    """The figures of some steps of training."""
    optimizer = torch.optim.AdamW(task.model.parameters(), lr=1e-2)
    history = []
    for step in range(steps):
        loss, figures = task.loss(task.batch(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(figures)
    return history


def test_the_loss_falls_and_the_encoder_is_exported(tokenizer: Tokenizer, tmp_path: Path) -> None:
    task = make(tokenizer)
    history = trained(task, 60)
    for name, share in (("span_loss", 0.6), ("kept_loss", 0.05)):
        first, last = (sum(figures[name] for figures in part) for part in (history[:5], history[-5:]))
        assert last < share * first, name

    task.export(tmp_path)
    encoder = TextEncoder.from_pretrained(tmp_path, dtype=torch.float32)
    bf16 = {name: w.bfloat16().float() for name, w in task.model.encoder.named_parameters()}
    assert all(torch.equal(w, bf16[name]) for name, w in encoder.model.encoder.named_parameters())
    assert (tmp_path / "text_encoder" / "model.safetensors").stat().st_size < 200_000
    found = encoder(["a red car", "a yellow rocket on top of a purple house"])
    assert found.mask.sum(dim=1).tolist() == [4, 10]


def test_lines_shorter_than_the_neighbourhood(tokenizer: Tokenizer) -> None:
    task = make(tokenizer, max_length=2, batch_size=2)
    assert all(np.isfinite(task.loss(task.batch(step))[0].item()) for step in range(8))


def test_an_encoding_tells_what_belongs_to_its_word(tokenizer: Tokenizer) -> None:
    """Of two nouns and two colours in a caption, each noun's own vector tells which colour is its."""
    task = make(tokenizer)
    trained(task, 140)
    ids = torch.tensor([tokenizer.ids(caption) for caption in CAPTIONS])  # a red car on top of a blue house
    with torch.no_grad():
        encoded = task.model.encoder(input_ids=ids).last_hidden_state
        told = task.neighbours(encoded).unflatten(2, (len(OFFSETS), -1)) @ task.model.shared.weight.T
    for noun in (2, 8):
        found = told[:, noun, OFFSETS.index(-1)].argmax(dim=1)
        assert (found == ids[:, noun - 1]).float().mean() > 0.85  # a guess among the colours: half of them at best


def test_the_encoder_keeps_words_apart(tokenizer: Tokenizer) -> None:
    """Each noun, in the same place of the same caption, is told by its own vector, nearest to its own embedding."""
    task = make(tokenizer)
    trained(task, 60)
    captions = [f"a red {noun} on top of a blue {other}" for noun in NOUNS for other in NOUNS]
    ids = torch.tensor([tokenizer.ids(caption) for caption in captions])
    with torch.no_grad():
        hidden = task.model.encoder(input_ids=ids).last_hidden_state
        told = (hidden @ task.model.shared.weight.T).argmax(dim=-1)
    assert (told == ids).float().mean() > 0.98
    nouns = torch.nn.functional.normalize(hidden[:: len(NOUNS) + 1, 2], dim=-1)
    likeness = nouns @ nouns.T - torch.eye(len(NOUNS))
    assert likeness.max() < 0.9


@pytest.mark.slow
def test_plain_text_is_prose_in_a_fixed_order() -> None:
    lines = plain_text()
    assert len(lines) > 5000
    assert len(set(lines)) == len(lines)
    assert all(4 <= len(line.split()) <= 30 for line in lines)
    assert not any(c in line for line in lines for c in "{}=_<>\n`")
