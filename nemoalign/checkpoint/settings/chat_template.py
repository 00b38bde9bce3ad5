"""How a checkpoint wants its prompts written: as people read it, and as a Jinja chat template.

NeMo records a prompt template or the tokens around turns; transformers and servers read Jinja.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from nemoalign.archive.files import Region
from nemoalign.checkpoint.settings.values import section, text
from nemoalign.checkpoint.settings.vocabulary import MAX_FILE_BYTES
from nemoalign.checkpoint.sources.nemo import HF_FOLDER, read_json_object
from nemoalign.config.prompts import named_piece, pieces, unescaped

PROMPT_TEMPLATE = "data.train_ds.prompt_template"
TURNS = "data.chat_prompt_tokens"
JINJA_FILE = "chat_template.jinja"
TOKENIZER_FILE = "tokenizer_config.json"
_NO_ROLE = "{{ raise_exception('This model was trained without messages of ' + message['role']) }}"


@dataclass(frozen=True)
class ChatTemplate:
    """The template of a prompt."""

    origin: str
    """Where the checkpoint records it."""
    text: str
    jinja: str | None
    """None where messages have no place in it."""
    notes: tuple[str, ...] = ()
    """In what the Jinja form is not exactly what was trained."""


def chat_template(
    config: Mapping[str, object], files: Mapping[str, Region], where: str
) -> ChatTemplate | None:
    """Return the template a checkpoint was trained with last, or None where it records none.

    ``data.chat`` decides between NeMo's turns and its prompt template, of which a configuration often
    holds both; the tokenizer's own template comes after them.
    """
    data = section(config, "data")
    turns = section(data, "chat_prompt_tokens")
    prompt = text(section(data, "train_ds"), "prompt_template")
    is_chat = bool(data.get("chat", not prompt))
    if is_chat and turns:
        return _of_turns(turns)
    if prompt and not is_chat:
        return _of_prompts(prompt, section(data, "train_ds"))
    recorded = text(section(config, "tokenizer"), "chat_template")
    if recorded is not None:
        return ChatTemplate("tokenizer.chat_template", recorded, recorded)
    held = held_template(files, where)
    return None if held is None else ChatTemplate("its tokenizer's files", held, held)


def held_template(files: Mapping[str, Region], where: str) -> str | None:
    """Return the Jinja template that comes with a tokenizer: a file, or a field of its settings."""
    own = files.get(f"{HF_FOLDER}{JINJA_FILE}")
    if own is not None:
        return own.read(MAX_FILE_BYTES).decode("utf-8", "replace")
    name = f"{HF_FOLDER}{TOKENIZER_FILE}"
    if name not in files:
        return None
    template = read_json_object(files[name], f"{where}: {name}").get("chat_template")
    if isinstance(template, list):
        named = [entry for entry in template if isinstance(entry, dict)]
        template = next((e.get("template") for e in named if e.get("name") == "default"), None)
    return template if isinstance(template, str) else None


def installed(template: ChatTemplate, files: Mapping[str, bytes]) -> dict[str, bytes]:
    """Return a Hugging Face directory's files with the template where every version looks for it."""
    assert template.jinja is not None, "only Jinja is installed"
    changed = {**files, JINJA_FILE: template.jinja.encode()}
    if TOKENIZER_FILE in files:
        settings = json.loads(files[TOKENIZER_FILE]) | {"chat_template": template.jinja}
        changed[TOKENIZER_FILE] = (json.dumps(settings, indent=2) + "\n").encode()
    return changed


def _of_turns(tokens: Mapping[str, object]) -> ChatTemplate:
    """Return the template of NeMo's chat format; ``nemo_chat.py`` of ``data`` writes the same."""
    system, turn, turn_end, name_end = (
        str(tokens.get(name) or "")
        for name in ("system_turn_start", "turn_start", "end_of_turn", "end_of_name")
    )
    example = (
        f"{system}System{name_end}{{system message}}{turn_end}"
        f"{turn}User{name_end}{{turn 1 user message}}{turn_end}"
        f"{turn}Assistant{name_end}{{turn 1 assistant message}}{turn_end}{turn}"
    )
    jinja = (
        "{% set system = messages[0]['content'] if messages[0]['role'] == 'system' else '' %}"
        f"{{{{ {_quoted(f'{system}System{name_end}')} + system + {_quoted(turn_end)} }}}}"
        "{% for message in messages %}"
        "{% if message['role'] in ('user', 'assistant') %}"
        f"{{{{ {_quoted(turn)} + message['role'] | capitalize + {_quoted(name_end)}"
        f" + message['content'] + {_quoted(turn_end)} }}}}"
        "{% elif not (loop.first and message['role'] == 'system') %}" + _NO_ROLE + "{% endif %}"
        "{% endfor %}"
        "{% if add_generation_prompt %}"
        f"{{{{ {_quoted(f'{turn}Assistant{name_end}')} }}}}"
        "{% elif messages[-1]['role'] == 'assistant' %}"
        f"{{{{ {_quoted(turn)} }}}}"
        "{% endif %}"
    )
    return ChatTemplate(TURNS, example, jinja)


def _of_prompts(recorded: str, rules: Mapping[str, object]) -> ChatTemplate:
    """Return the template of prompt-response rows: a question becomes the text before the answer."""
    origin = PROMPT_TEMPLATE
    cut = pieces(unescaped(recorded))
    named = [named_piece(piece) for piece in cut]
    fields = list(dict.fromkeys(field for _, field in named[:-1] if field))
    if named[-1][1] is None or len(fields) not in (1, 2):
        note = (
            f"{origin} {recorded!r} has {len(fields)} fields before the answer; a chat template has a "
            "place for a question, or for a system message and a question."
        )
        return ChatTemplate(origin, recorded, None, (note,))
    values = {fields[-1]: "message['content'].strip(' ')"}
    if len(fields) == 2:
        values[fields[0]] = "system.text"
    begin = ["bos_token"] if rules.get("add_bos") else []
    question = begin + [_piece(piece, values) for piece in named[:-1]]
    answer = [_piece(named[-1], {str(named[-1][1]): "message['content'].strip(' ')"})]
    if rules.get("add_eos") is not False:
        answer.append("eos_token")
    jinja = (
        ("{% set system = namespace(text='') %}" if len(fields) == 2 else "")
        + "{% for message in messages %}"
        + f"{{% if message['role'] == 'user' %}}{{{{ {' + '.join(question)} }}}}"
        + f"{{% elif message['role'] == 'assistant' %}}{{{{ {' + '.join(answer)} }}}}"
        + (_SYSTEM if len(fields) == 2 else "")
        + f"{{% else %}}{_NO_ROLE}{{% endif %}}{{% endfor %}}"
    )
    return ChatTemplate(origin, recorded, jinja, tuple(_differences(cut, fields, rules)))


_SYSTEM = (
    "{% elif message['role'] == 'system' %}{% set system.text = message['content'].strip(' ') %}"
)


def _piece(piece: tuple[str, str | None], values: Mapping[str, str]) -> str:
    spaces, field = piece
    if field is None:
        return _quoted(spaces)
    return f"{_quoted(spaces)} + {values[field]}" if spaces else values[field]


def _differences(cut: list[str], fields: list[str], rules: Mapping[str, object]) -> list[str]:
    """Return in what rendering a conversation and tokenizing it whole may differ from training."""
    notes: list[str] = []
    if len(fields) == 2:
        notes.append(
            f"In its chat template a system message is {{{fields[0]}}} and a question {{{fields[1]}}}."
        )
    joined = [piece for piece in cut[1:] if not piece.startswith(" ")]
    if joined:
        notes.append(
            f"The pieces of the prompt template were tokenized one by one, as NeMo does it. "
            f"{joined[0]!r} begins without a space, so tokens may differ where it meets what is before it."
        )
    if rules.get("add_sep"):
        notes.append("add_sep put the id 0 before answers, which no chat template can write.")
    return notes


def _quoted(words: str) -> str:
    """Return a Jinja string; its escapes are JSON's, but characters beyond the first plane stay."""
    return json.dumps(words, ensure_ascii=False)
