"""conditioning/: the embedding of a batch of prompts, and the frozen T5 that makes it, on tiny real T5s."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cascade.training.tokenizer import train_tokenizer
from conditioning import TextEmbedding, TextEncoder, Tokenizer

LINES = [
    f"a {c} {n} {r} a {c} {n}" for c in ("red", "blue", "green") for n in ("car", "house", "ball") for r in ("on", "by")
]
LINES += ["the quick brown fox jumps over the lazy dog, as ever."] * 9
SHORT, LONG = "a red car", "a green ball on a blue house by a red car, a zoë and 7 dice"


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    from transformers.models.t5.configuration_t5 import T5Config
    from transformers.models.t5.modeling_t5 import T5EncoderModel

    tokenizer = train_tokenizer(LINES, tmp_path_factory.mktemp("tokenizer"), vocab_size=400)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = T5EncoderModel(
            T5Config(vocab_size=tokenizer.size, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4)
        )
    return TextEncoder(model, tokenizer, max_length=64)


def embedding(batch: int, length: int, **kwargs: object) -> TextEmbedding:
    mask = torch.arange(length)[None] < torch.arange(1, batch + 1)[:, None].clamp(max=length)
    return TextEmbedding(torch.randn(batch, length, 4), mask, **kwargs)


# TextEmbedding


def test_masked_positions_are_zero_when_trimmed_and_stay_when_kept() -> None:
    assert (embedding(3, 5).tokens[~embedding(3, 5).mask] == 0).all()
    assert (embedding(3, 5, padding="kept").tokens != 0).all()


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 6)), min_size=1, max_size=4))
@settings(max_examples=20)
def test_cat_and_slices_are_inverse(shapes: list[tuple[int, int]]) -> None:
    parts = [embedding(*shape) for shape in shapes]
    joined = TextEmbedding.cat(parts)
    assert len(joined) == sum(len(p) for p in parts)
    begin = 0
    for part in parts:
        piece = joined[begin : begin + len(part)]
        n = part.tokens.shape[1]
        assert torch.equal(piece.tokens[:, :n], part.tokens)
        assert torch.equal(piece.mask[:, :n], part.mask)
        assert not piece.mask[:, n:].any()
        begin += len(part)


def test_repeat_interleave_keeps_copies_together() -> None:
    e = embedding(2, 3)
    r = e.repeat_interleave(2)
    assert torch.equal(r.tokens, e.tokens[[0, 0, 1, 1]])
    assert torch.equal(r.mask, e.mask[[0, 0, 1, 1]])


def test_to_converts_tokens_only() -> None:
    e = embedding(2, 3).to("cpu", torch.bfloat16)
    assert (e.tokens.dtype, e.mask.dtype) == (torch.bfloat16, torch.bool)
    assert embedding(2, 3).to(dtype=torch.float64).tokens.dtype == torch.float64


def test_null_is_zero_with_one_unmasked_position() -> None:
    null = TextEmbedding.null(3, 8, dtype=torch.bfloat16)
    assert null.tokens.shape == (3, 1, 8)
    assert null.tokens.dtype == torch.bfloat16
    assert (null.tokens == 0).all()
    joined = TextEmbedding.cat([TextEmbedding.null(3, 4), embedding(2, 5)])
    assert joined.mask[:3].sum(dim=1).tolist() == [1, 1, 1]


ONES = torch.ones(2, 3, 4)


@pytest.mark.parametrize(
    ("tokens", "mask", "padding", "message"),
    [
        (ONES[0], torch.ones(2, 3) > 0, "trimmed", r"tokens have shape \(3, 4\).*expected \(B, N, D\), floating"),
        (ONES.long(), torch.ones(2, 3) > 0, "trimmed", "dtype torch.int64"),
        (ONES, torch.ones(2, 4) > 0, "trimmed", r"mask has shape \(2, 4\).*expected \(2, 3\), bool.*\(2, 3, 4\)"),
        (ONES, torch.ones(2, 3), "trimmed", r"dtype torch.float32; expected \(2, 3\), bool"),
        (ONES, torch.tensor([[True] * 3, [False] * 3]), "trimmed", r"no unmasked token in rows \[1\]"),
        (ONES, torch.ones(2, 3) > 0, "left", "padding is 'left'; expected"),
    ],
)
def test_bad_embeddings_are_refused(tokens: torch.Tensor, mask: torch.Tensor, padding: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextEmbedding(tokens, mask, padding)  # type: ignore[arg-type]


def test_embeddings_that_differ_are_not_joined() -> None:
    with pytest.raises(ValueError, match=r"width, dtype, device, padding.*trimmed.*kept"):
        TextEmbedding.cat([embedding(1, 2), embedding(1, 2, padding="kept")])
    with pytest.raises(ValueError, match="no embeddings"):
        TextEmbedding.cat([])
    with pytest.raises(TypeError, match="indexed by a slice"):
        embedding(1, 2)[0]  # type: ignore[index]


# TextEncoder


def test_a_prompt_is_embedded_the_same_alone_or_beside_a_longer_one(encoder: TextEncoder) -> None:
    alone, both = encoder([SHORT]), encoder([LONG, SHORT])
    n = alone.tokens.shape[1]
    assert both.tokens.shape[1] > n
    assert both.mask[1].sum() == n
    torch.testing.assert_close(both.tokens[1:, :n], alone.tokens, rtol=0, atol=1e-5)
    assert (both.tokens[1, n:] == 0).all()
    assert not alone.tokens.requires_grad


def test_kept_padding_has_the_full_length_and_the_encoder_output(encoder: TextEncoder) -> None:
    kept = TextEncoder(encoder.model, encoder.tokenizer, max_length=32, padding="kept")([SHORT])
    n = int(kept.mask.sum())
    assert kept.tokens.shape == (1, 32, 16)
    assert (kept.tokens[0, n:] != 0).any()
    torch.testing.assert_close(kept.tokens[:, :n], encoder([SHORT]).tokens, rtol=0, atol=1e-5)


def test_case_does_not_matter_and_nothing_is_unknown(encoder: TextEncoder) -> None:
    assert encoder.tokenizer.ids("A Red  CAR") == encoder.tokenizer.ids(SHORT)
    assert 2 not in encoder.tokenizer.ids("Zoë 🚗 数")


@pytest.mark.parametrize(("max_length", "cut"), [(4, "on a blue house"), (5, "a blue house"), (6, "blue house")])
def test_a_long_prompt_is_cut_and_the_words_are_named(encoder: TextEncoder, max_length: int, cut: str) -> None:
    short = TextEncoder(encoder.model, encoder.tokenizer, max_length=max_length)
    with pytest.warns(UserWarning, match=f"has 8 tokens and max_length is {max_length}.*cut: '{cut}'. Shorten"):
        found = short(["a red car on a blue house"])
    assert found.tokens.shape[1] == max_length


def test_a_word_cut_in_two_counts_as_cut(encoder: TextEncoder) -> None:
    tokenizer = encoder.tokenizer
    assert len(tokenizer.ids("Zebra")) > 2
    with pytest.warns(UserWarning, match="cut: 'Zebra here'"):
        ids = tokenizer("a car Zebra here", max_length=len(tokenizer.ids("a car")) + 3)
    assert ids[-1] == 1


@pytest.mark.parametrize(
    ("prompts", "error", "message"),
    [
        ("a red car", TypeError, r"is the string 'a red car'; expected a list of strings: \['a red car'\]"),
        ([], ValueError, "empty list"),
        (["a car", 7], TypeError, "prompt 1 is 7, a int; expected a string"),
        ([None], TypeError, "prompt 0 is None"),
        (["a car", " \n"], ValueError, r"prompt 1 is ' \\n', which is empty; describe an image"),
    ],
)
def test_bad_prompts_are_refused(encoder: TextEncoder, prompts: list, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        encoder(prompts)


def test_null_fits_the_encoder(encoder: TextEncoder) -> None:
    joined = TextEmbedding.cat([encoder([SHORT]), encoder.null(2)])
    assert joined.mask.sum(dim=1).tolist()[1:] == [1, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_and_loaded_is_bit_equal(encoder: TextEncoder, tmp_path: Path, dtype: torch.dtype) -> None:
    encoder = copy.deepcopy(encoder).to(dtype=dtype)
    encoder.save_pretrained(tmp_path)
    wanted = encoder([LONG, SHORT])
    assert not list(tmp_path.rglob("*.bin"))
    again = TextEncoder.from_pretrained(tmp_path, max_length=64)
    assert again.dtype == dtype
    assert torch.equal(again([LONG, SHORT]).tokens, wanted.tokens)
    parts = TextEncoder.from_pretrained(tmp_path / "text_encoder", tmp_path / "tokenizer", dtype=torch.float64)
    assert parts.dtype == torch.float64
    assert not again.model.training
    assert not any(p.requires_grad for p in again.model.parameters())


def test_the_saved_tokenizer_is_the_one_transformers_loads(encoder: TextEncoder, tmp_path: Path) -> None:
    from transformers import T5Tokenizer

    encoder.tokenizer.save(tmp_path)
    theirs = T5Tokenizer.from_pretrained(tmp_path)
    for prompt in [*LINES, "A Red  CAR", "greenish cars"]:
        assert theirs(prompt).input_ids == encoder.tokenizer(prompt, 64)
    assert theirs.convert_tokens_to_ids("<extra_id_0>") == encoder.tokenizer.sentinel(0) == encoder.tokenizer.size - 1
    assert len(theirs) == encoder.tokenizer.size


def test_a_legacy_bin_is_loaded_without_running_code(encoder: TextEncoder, tmp_path: Path) -> None:
    encoder.save_pretrained(tmp_path)
    folder = tmp_path / "text_encoder"
    (folder / "model.safetensors").unlink()
    torch.save(encoder.model.state_dict(), folder / "pytorch_model.bin")
    assert torch.equal(TextEncoder.from_pretrained(tmp_path)([SHORT]).tokens, encoder([SHORT]).tokens)

    class Bomb:
        def __reduce__(self) -> tuple:
            return (Path.mkdir, (tmp_path / "pwned",))

    torch.save({**encoder.model.state_dict(), "x": Bomb()}, folder / "pytorch_model.bin")
    with pytest.raises(Exception, match=r"(?i)weights.only"):
        TextEncoder.from_pretrained(tmp_path)
    assert not (tmp_path / "pwned").exists()


def test_missing_pieces_are_named(encoder: TextEncoder, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no folder '/no/where'"):
        TextEncoder.from_pretrained("/no/where")
    with pytest.raises(FileNotFoundError, match=r"'someone/t5' is no local folder.*pass a folder"):
        TextEncoder.from_pretrained("someone/t5", local_files_only=True, cache_dir=tmp_path / "cache")
    with pytest.raises(FileNotFoundError, match=r"no config\.json in"):
        TextEncoder.from_pretrained(tmp_path)
    encoder.save_pretrained(tmp_path)
    (tmp_path / "tokenizer" / "spiece.model").unlink()
    with pytest.raises(FileNotFoundError, match=r"no spiece\.model in"):
        TextEncoder.from_pretrained(tmp_path)
    encoder.save_pretrained(tmp_path)
    (tmp_path / "text_encoder" / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="no weights in"):
        TextEncoder.from_pretrained(tmp_path)


def test_settings_are_checked(encoder: TextEncoder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_length is 1"):
        TextEncoder(encoder.model, encoder.tokenizer, max_length=1)
    with pytest.raises(ValueError, match="padding is 'none'"):
        TextEncoder(encoder.model, encoder.tokenizer, padding="none")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sentinel 32 of a tokenizer with 32"):
        encoder.tokenizer.sentinel(32)
    encoder.tokenizer.save(tmp_path)
    assert Tokenizer.from_folder(tmp_path).size == encoder.tokenizer.size
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer"}))
    assert Tokenizer.from_folder(tmp_path).extra_ids == 100


def test_import_is_light() -> None:
    code = "import sys, conditioning, conditioning.text; print({'transformers', 'sentencepiece'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "set()"
