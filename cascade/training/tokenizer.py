"""Training the tokenizer of a small T5: SentencePiece, with a piece for every frequent word."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from conditioning.tokenizer import EOS, PAD, UNK, Tokenizer


def train_tokenizer(lines: Iterable[str], folder: str | Path, vocab_size: int = 1024, extra_ids: int = 32) -> Tokenizer:
    """Train a SentencePiece unigram model with T5's special ids and write it to a folder; same lines, same bytes.

    vocab_size: ids in all, `extra_ids` sentinels included; a text too small for that many pieces gives fewer. Text is
    case-folded and NFKC-normalized; a character never seen becomes its bytes, so no prompt loses anything. A word that
    is frequent in the lines is one piece, so mix them in the shares that training will see.
    """
    import sentencepiece

    special = 3 + 256  # pad, eos, unk and the 256 byte pieces
    if vocab_size < special + extra_ids + 32:
        raise ValueError(
            f"vocab_size is {vocab_size}; {special} special and byte pieces and {extra_ids} sentinels leave too few "
            f"for words: expected at least {special + extra_ids + 32}"
        )
    lines = list(lines)
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="unigram",
        vocab_size=vocab_size - extra_ids,
        hard_vocab_limit=False,
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="nmt_nfkc_cf",
        pad_id=PAD,
        eos_id=EOS,
        unk_id=UNK,
        bos_id=-1,
        num_threads=1,  # the sums of several threads depend on their number
        minloglevel=2,
    )
    tokenizer = Tokenizer(_with_frequent_words(model.getvalue(), lines, vocab_size - extra_ids), extra_ids)
    tokenizer.save(folder)
    return tokenizer


def _with_frequent_words(model: bytes, lines: Sequence[str], size: int) -> bytes:
    """Make every frequent word one piece; beyond `size` pieces, in place of the least likely of several characters.

    Pruning by likelihood drops the whole word "yellow" where "ye" and "llow" explain it nearly as well. Frequent is a
    share of 1e-4 of the words; such words take at most half of the pieces.
    """
    import sentencepiece
    from sentencepiece.sentencepiece_model_pb2 import ModelProto  # pyright: ignore[reportAttributeAccessIssue] (made at import)

    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    words = Counter(word for line in lines for word in processor.normalize(line).split("\u2581") if word)
    total = words.total()
    frequent = sorted((-n, w) for w, n in words.items() if n >= 1e-4 * total and w.isalpha())
    proto = ModelProto.FromString(model)
    ordinary = [p for p in proto.pieces if p.type == ModelProto.SentencePiece.Type.NORMAL]
    frequent = {f"\u2581{w}": -n for n, w in frequent[: len(ordinary) // 2]}
    missing = [w for w in frequent if w not in {p.piece for p in ordinary}]
    spare = sorted((p for p in ordinary if len(p.piece) > 1 and p.piece not in frequent), key=lambda p: p.score)
    places = [proto.pieces.add() for _ in missing[: max(size - len(proto.pieces), 0)]] + spare
    for piece, word in zip(places, missing, strict=False):
        piece.piece, piece.score = word, math.log(frequent[word] / total)
    return proto.SerializeToString(deterministic=True)
