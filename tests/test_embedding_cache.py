"""conditioning/embedding_cache.py: what comes from the disk is what the encoder would say, or an error."""

import json
import pickle
from dataclasses import replace

import pytest
import torch
from conftest import CAPTIONS
from safetensors.torch import load_file

from conditioning.embedding_cache import EmbeddingCache, EncoderIdentity, caption_key, shard_path
from conditioning.text import TextEncoder
from pipelines.embed import build_cache


class Captions:
    """A source without pictures."""

    def __init__(self, captions):
        self.own = captions

    def __len__(self):
        return len(self.own)

    def name(self, index):
        return f"item {index}"

    def captions(self, index):
        return [self.own[index]]

    def image(self, index):
        raise AssertionError("an embedding needs no picture")


@pytest.fixture
def identity(text_encoder):
    return EncoderIdentity.of(text_encoder, "tiny")


@pytest.fixture
def folder(text_encoder, identity, tmp_path):
    build_cache(Captions([*CAPTIONS, *CAPTIONS]), text_encoder, identity, tmp_path / "cache")
    return tmp_path / "cache"


@pytest.mark.parametrize("padding", ["trimmed", "kept"])
def test_the_cache_says_what_the_encoder_says(text_encoder, tmp_path, padding, monkeypatch):
    monkeypatch.setattr("pipelines.embed.ITEMS_PER_SHARD", 10)
    encoder = TextEncoder(text_encoder.model, text_encoder.tokenizer, max_length=20, padding=padding)
    identity = EncoderIdentity.of(encoder, "tiny")
    build_cache(Captions(CAPTIONS), encoder, identity, tmp_path, batch_size=7)
    assert len(list(tmp_path.glob("*.safetensors"))) == 4
    cache = EmbeddingCache(tmp_path, identity)
    prompts = [CAPTIONS[i] for i in (5, 0, 5, 30)]
    found, fresh = cache(prompts), encoder(prompts)
    assert found.padding == fresh.padding
    assert found.tokens.dtype == torch.bfloat16
    assert torch.equal(found.mask, fresh.mask)
    # bfloat16 has 8 bits; in another batch the last bits of float32 differ.
    torch.testing.assert_close(found.tokens.float(), fresh.tokens, rtol=2**-8, atol=1e-6)
    assert (found.tokens == fresh.tokens.to(torch.bfloat16)).float().mean() > 0.99
    assert len(cache([CAPTIONS[0]])) == 1


def test_a_caption_is_stored_once(folder, identity):
    (shard,) = folder.glob("*.safetensors")
    stored = load_file(shard)
    assert stored["keys"].tolist() == sorted(map(list, map(caption_key, CAPTIONS)))
    assert len(stored["tokens"]) == stored["lengths"].sum() == stored["ends"][-1]
    assert all(caption in EmbeddingCache(folder) for caption in CAPTIONS)
    assert "a red Car on a red car" not in EmbeddingCache(folder)


def test_a_missing_caption_is_named(folder):
    with pytest.raises(ValueError, match=r"no embedding of the caption 'a purple cow'; run `cascade embed` again"):
        EmbeddingCache(folder)([CAPTIONS[0], "a purple cow"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fingerprint": "f" * 32}, "fingerprint ffffffff"),
        ({"max_length": 77}, "max_length 77"),
        ({"padding": "kept"}, "padding kept"),
    ],
)
def test_another_encoder_is_refused(folder, identity, change, said, text_encoder):
    other = replace(identity, name="google/other", revision="abc", **change)
    for refused in (
        lambda: EmbeddingCache(folder, other),
        lambda: build_cache(Captions(CAPTIONS), text_encoder, other, folder),
    ):
        with pytest.raises(ValueError, match=f"are those of tiny .*google/other at revision abc .*{said}") as error:
            refused()
        assert f"they differ in {next(iter(change))}." in str(error.value)
    assert EmbeddingCache(folder, replace(identity, name="a copy", revision="xyz")).identity == identity


def test_the_fingerprint_is_of_the_weights(text_encoder, identity, tmp_path):
    """Not of the folder, the files or the type they are loaded in; and any weight that is trained changes it."""
    text_encoder.save_pretrained(tmp_path)
    for dtype in (torch.float32, torch.bfloat16):
        again = TextEncoder.from_pretrained(tmp_path, dtype=dtype, max_length=64)
        assert EncoderIdentity.of(again, "copy").fingerprint == identity.fingerprint
    for parameter in again.model.parameters():
        kept = parameter.detach().clone()
        parameter += 0.01
        assert EncoderIdentity.of(again, "trained").fingerprint != identity.fingerprint
        parameter.copy_(kept)
    assert EncoderIdentity.of(again, "copy").fingerprint == identity.fingerprint


def test_it_can_be_pickled_and_shared(folder):
    cache = EmbeddingCache(folder)
    before = cache(CAPTIONS[:3]).tokens
    assert torch.equal(pickle.loads(pickle.dumps(cache))(CAPTIONS[:3]).tokens, before)


def test_few_shards_are_open_at_a_time(text_encoder, identity, tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.embed.ITEMS_PER_SHARD", 2)
    monkeypatch.setattr("conditioning.embedding_cache.OPEN_SHARDS", 3)
    build_cache(Captions(CAPTIONS), text_encoder, identity, tmp_path)
    cache = EmbeddingCache(tmp_path)
    assert torch.equal(cache(CAPTIONS).mask, text_encoder(CAPTIONS).mask)
    assert len(cache._open) == 3


def test_what_is_damaged_is_named(folder, text_encoder, identity):
    shard = shard_path(folder, 0)
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=r"00000.safetensors is damaged .* run the same `cascade embed` again"):
        EmbeddingCache(folder)(CAPTIONS[:1])
    assert build_cache(Captions(CAPTIONS), text_encoder, identity, folder).made == len(CAPTIONS)
    assert shard.read_bytes() == whole
    header = json.loads((folder / "cache.json").read_text())
    for content, message in (
        ("{", "cannot be read"),
        (json.dumps(header | {"format": 2}), "format is 2"),
        (json.dumps(header | {"encoder": {}}), "name"),
    ):
        (folder / "cache.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            EmbeddingCache(folder)
    (folder / "cache.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no cache.json in .*cascade embed"):
        EmbeddingCache(folder)
    with pytest.raises(ValueError, match=r"no cache.json that says what made them"):
        build_cache(Captions(CAPTIONS), text_encoder, identity, folder)


def test_training_reads_it(folder, text_encoder):
    """The embeddings come with the batch."""
    import numpy as np
    from PIL import Image

    from cascade.data.samples import TrainingSet, collate
    from cascade.data.transform import Transform

    source = Captions(CAPTIONS)
    source.image = lambda index: Image.fromarray(np.full((8, 8, 3), index, np.uint8))
    data = TrainingSet(source, Transform((8, 8)))
    batch = collate([data[i] for i in range(6)], EmbeddingCache(folder))
    fresh = text_encoder(batch.captions)
    assert torch.equal(batch.text.mask, fresh.mask)
    torch.testing.assert_close(batch.text.tokens.float(), fresh.tokens, rtol=2**-8, atol=1e-6)
    assert [int(image[0, 0, 0]) for image in batch.images] == [CAPTIONS.index(text) for text in batch.captions]
