"""T5's tokenizer: a SentencePiece model, with the sentinels T5 numbers after its pieces.

SentencePiece is called directly: its model file is what every T5 was trained with; reading it takes milliseconds and
keeps the byte pieces of a model that has them.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path

MODEL_FILE = "spiece.model"
CONFIG_FILE = "tokenizer_config.json"
PAD, EOS, UNK = 0, 1, 2  # T5's special ids


class Tokenizer:
    """Prompt -> list of ids that ends with T5's end-of-sequence id.

    `pieces` counts the pieces of the SentencePiece model; `sentinel(i)` are the ids above them, counted downwards as T5
    does: sentinel 0 is the largest id, `size - 1`.
    """

    def __init__(self, model: bytes, extra_ids: int = 100) -> None:
        import sentencepiece

        self._model = model
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        self.pieces: int = self._processor.get_piece_size()
        self.extra_ids = extra_ids
        ids = (self._processor.pad_id(), self._processor.eos_id(), self._processor.unk_id())
        if ids != (PAD, EOS, UNK):
            raise ValueError(f"the ids of pad, eos and unk are {ids}; T5 has {(PAD, EOS, UNK)}")

    @classmethod
    def from_folder(cls, folder: str | Path) -> Tokenizer:
        """Read `spiece.model` and, where there is one, `tokenizer_config.json` from a transformers tokenizer folder."""
        folder = Path(folder)
        path = folder / MODEL_FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"no {MODEL_FILE} in {folder}: a T5 tokenizer is a SentencePiece model of that name; "
                "pass the folder that holds it as `tokenizer`"
            )
        extra_ids = 100  # T5's number, where the folder says nothing else
        if (folder / CONFIG_FILE).is_file():
            extra_ids = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8")).get("extra_ids", extra_ids)
        return cls(path.read_bytes(), extra_ids)

    @property
    def size(self) -> int:
        """Pieces and sentinels together: the rows of the embedding table that are in use."""
        return self.pieces + self.extra_ids

    def sentinel(self, index: int) -> int:
        """The id of T5's `<extra_id_{index}>`."""
        if not 0 <= index < self.extra_ids:
            raise ValueError(f"sentinel {index} of a tokenizer with {self.extra_ids} sentinels")
        return self.size - 1 - index

    def ids(self, text: str) -> list[int]:
        """The ids of a text, without the end-of-sequence id, of any length."""
        return self._processor.encode(text)

    def words(self, ids: list[int]) -> list[str]:
        """The pieces behind some ids, for messages and tests."""
        return [self._processor.id_to_piece(i) if i < self.pieces else f"<extra_id_{self.size - 1 - i}>" for i in ids]

    def __call__(self, prompt: str, max_length: int) -> list[int]:
        """At most `max_length` ids, the last one EOS. A longer prompt is cut, with a warning naming the words cut."""
        ids = self.ids(prompt)
        if len(ids) < max_length:
            return [*ids, EOS]
        words = prompt.split()
        whole, used = 0, 0  # no piece spans two words, so the pieces of a prompt are those of its words
        for word in words:
            used += len(self.ids(word))
            if used >= max_length:
                break
            whole += 1
        warnings.warn(
            f"the prompt has {len(ids) + 1} tokens and max_length is {max_length}; these words were cut: "
            f"{' '.join(words[whole:])!r}. Shorten the prompt, or raise max_length if the model was trained for it.",
            stacklevel=3,
        )
        return [*ids[: max_length - 1], EOS]

    def save(self, folder: str | Path) -> None:
        """Write what transformers' T5Tokenizer loads: `spiece.model` and `tokenizer_config.json`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MODEL_FILE).write_bytes(self._model)
        config = {
            "tokenizer_class": "T5Tokenizer",
            "extra_ids": self.extra_ids,
            "pad_token": "<pad>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
        }
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
