"""What ``generate`` has for itself: prompts, and how tokens are chosen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from nemoalign.config.fields import AlgorithmSettings, setting

PANEL = "Prompts and answers"
CHOICE = "Choice of tokens"


@dataclass(frozen=True, kw_only=True)
class GenerateSettings(AlgorithmSettings):
    """Answers to prompts; nothing is trained."""

    trains: ClassVar[bool] = False

    prompt: tuple[str, ...] = setting(
        (),
        "What a user says; the checkpoint's own template is put around it. Repeat it for several.",
        flag="--prompt",
        short="-p",
        metavar="TEXT",
        panel=PANEL,
    )
    prompts_path: tuple[Path, ...] = setting(
        (),
        "Prompts of a file, rows as for training; answers they have are left away.",
        flag="--data",
        metavar="FILE",
        path_kind="file",
        panel=PANEL,
    )
    raw: bool = setting(
        False, "Continue --prompt as it stands, without a template.", flag="--raw", panel=PANEL
    )
    max_new_tokens: int = setting(
        256, "Tokens of an answer at most.", flag="--max-new-tokens", at_least=1, panel=PANEL
    )
    min_new_tokens: int = setting(
        0, "Tokens of an answer at least.", flag="--min-new-tokens", at_least=0, panel=PANEL
    )
    stop: tuple[str, ...] = setting(
        (),
        "Text that ends an answer, beside the template's own end; it is left away.",
        flag="--stop",
        metavar="TEXT",
        panel=PANEL,
    )
    temperature: float = setting(
        0.0,
        "How far draws stray from the likeliest token; 0 takes it.",
        flag="--temperature",
        at_least=0,
        panel=CHOICE,
    )
    top_k: int = setting(
        0, "Only so many of the likeliest; 0 is all.", flag="--top-k", at_least=0, panel=CHOICE
    )
    top_p: float = setting(
        1.0,
        "Only the likeliest that together have this probability.",
        flag="--top-p",
        above=0,
        at_most=1,
        panel=CHOICE,
    )
    slots: int = setting(32, "Rows that are continued together.", at_least=1)
