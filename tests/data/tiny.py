"""Small tokenizers and files for the tests of the data room; nothing here comes from our own code."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from nemoalign.archive.files import Region
from nemoalign.data.encoding import Encoding

FIXTURES = Path(__file__).parents[1] / "fixtures"
VECTORS = FIXTURES / "vectors"

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_MARKED = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Qwen3's habit: thoughts of earlier answers are left out, the last answer always shows some.
FORGETFUL = (
    "{% for message in messages %}"
    "{% set words = message['content'].split('</think>')[-1].strip() %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ words + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is two plus two?"},
    {"role": "assistant", "content": "It is four."},
    {"role": "user", "content": "And three plus one?\n"},
    {"role": "assistant", "content": "  Four again, naïvely 😀"},
]


def save_hf_tokenizer(directory: Path, chat_template: str | None = CHATML) -> Path:
    """A byte BPE like SmolLM2's, saved by transformers."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([m["content"] for m in TALK] * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
    )
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(directory)
    return directory


def regions(directory: Path, prefix: str = "") -> dict[str, Region]:
    """The files of a folder as a checkpoint would offer them."""
    return {prefix + p.name: Region(p, 0, p.stat().st_size) for p in directory.iterdir()}


def region(path: Path) -> Region:
    return Region(path, 0, path.stat().st_size)


def write_jsonl(path: Path, rows: Iterable[Mapping[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


class CharTokenizer:
    """The vectors' tokenizer: one token per character, id = code + 10, eos 1, bos 2."""

    vocab_size = 2000
    eos_id = 1
    bos_id: int | None = 2
    pad_id = 1
    chat_template: str | None = None
    fingerprint = "one token per character"
    special_tokens = ("<end>",)

    def __init__(self, space_sensitive: bool = True) -> None:
        self.space_sensitive = space_sensitive

    def encode(self, text: str) -> list[int]:
        return [ord(letter) + 10 for letter in text]

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def encode_spans(self, texts: Iterable[str]) -> list[Encoding]:
        return [Encoding(self.encode(t), [(i, i + 1) for i in range(len(t))]) for t in texts]

    def decode(self, ids: Iterable[int]) -> str:
        return "".join("<end>" if one == 1 else chr(one - 10) for one in ids)

    def render_chat(self, messages, *, add_generation_prompt, tools=None) -> str:
        text = "".join(f"[{m['role']}]{m['content']}" for m in messages)
        return text + "[assistant]" * add_generation_prompt

    def render_marked(self, messages, *, tools=None) -> tuple[str, list[tuple[int, int]]]:
        raise AssertionError("the test tokenizer has no marked template")
