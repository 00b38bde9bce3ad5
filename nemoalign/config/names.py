"""Which keys exist, what NeMo means by them, and how a wrong one is named to a person."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from typing import Any

from nemoalign.config.aligner_ppo import CRITIC
from nemoalign.config.architecture import Architecture
from nemoalign.config.fields import Entry
from nemoalign.config.layers import Given, Layer
from nemoalign.config.legacy import aliases_of, is_lost, is_nemo_key, is_quiet, spelled
from nemoalign.config.values import plain
from nemoalign.errors import ConfigError

ARCHITECTURE = frozenset(f"model.{f.name}" for f in fields(Architecture))
TOKENIZER = "model.tokenizer."
OVERWRITE = "model.overwrite_base_config."


class Names:
    """The keys a run of one algorithm may hold."""

    def __init__(self, entries: Mapping[str, Entry], algorithm: str) -> None:
        self.entries = entries
        self.algorithm = algorithm
        self.sections = {
            key[:dot] for key in entries for dot, letter in enumerate(key) if letter == "."
        }

    def check(self, layer: Layer) -> None:
        """Refuse a key that neither we nor NeMo know.

        Raises:
            ConfigError: naming the key, where it stands and the nearest known one.
        """
        for key, given in layer.values.items():
            if key in self.sections and given.value is not None:
                inside = next(known for known in self.entries if known.startswith(f"{key}."))
                raise ConfigError(
                    f"{given.source} sets {key} to {given.value!r}, but that is a section. "
                    f"Set what is in it, such as {inside}."
                )
            if not self.knows(key):
                raise ConfigError(f"{given.source}: there is no setting {key}.{self._nearest(key)}")
        for key in layer.dropped:
            if not self.knows(key):
                raise ConfigError(f"--set ~{key}: there is no setting {key}.{self._nearest(key)}")

    def knows(self, key: str) -> bool:
        """True for a setting, a section, an architecture or tokenizer key, and NeMo's own keys."""
        return (
            key in self.entries
            or key in self.sections
            or key in ARCHITECTURE
            or key.startswith((TOKENIZER, OVERWRITE))
            or is_nemo_key(key, self.algorithm)
        )

    def lost(
        self, upper: Mapping[str, Given], value: Callable[[str], Any], values: Mapping[str, Any]
    ) -> Iterator[str]:
        """Yield one warning that names every NeMo key which has no effect here, by its source."""
        by_source: dict[str, list[str]] = {}
        for key, given in upper.items():
            of_critic = key.removeprefix(CRITIC)
            if of_critic != key:
                lost = of_critic in self.entries and value(key) != plain(values[of_critic])
            else:
                lost = self._is_foreign(key) and is_lost(key, value(key), values, self.algorithm)
            if lost:
                by_source.setdefault(given.source, []).append(of_critic)
        if by_source:
            listed = "; ".join(
                f"{', '.join(sorted(keys))} ({source})" for source, keys in by_source.items()
            )
            yield f"NeMo settings without effect here: {listed}."

    def _is_foreign(self, key: str) -> bool:
        """True for a key of NeMo's that may mean something there and is nothing here."""
        ours = key in self.entries or key in ARCHITECTURE or is_quiet(key, self.algorithm)
        return not ours and is_nemo_key(key, self.algorithm)

    def spelled(self, key: str, value: Any) -> Any:
        """Return ``value`` as we spell it, when NeMo spells it otherwise."""
        return spelled(key, value) if key in self.entries else value

    def complaint(self, key: str, value: Any, source: str, reason: str) -> str:
        """Return the sentence about a value that is none: what, where from, what it must be."""
        flag = (self.entries[key].setting.flag or "").partition("/")[0]
        if source == f"flag {flag}":
            return f"{flag} {value} does not work: {key} {reason}."
        hint = f" On the command line it is {flag}." if flag else ""
        return f"{key} is {value!r} ({source}); it {reason}.{hint}"

    def _nearest(self, key: str) -> str:
        """Return " Did you mean ...?" for the likeliest known key, or nothing."""
        settings = [*self.entries, *aliases_of(self.entries), *sorted(ARCHITECTURE)]
        named = {known.rpartition(".")[2] for known in settings}
        last = difflib.get_close_matches(key.rpartition(".")[2], named, n=3, cutoff=0.85)
        alike = [known for known in settings if known.rpartition(".")[2] in last]
        close = difflib.get_close_matches(key, alike, n=1, cutoff=0.0)
        close = close or difflib.get_close_matches(key, settings, n=1, cutoff=0.75)
        if not close:
            return " --print-config shows every setting."
        entry = self.entries.get(close[0])
        flag = (entry.setting.flag if entry else None) or ""
        return f" Did you mean {close[0]}{f' ({flag})' if flag else ''}?"
