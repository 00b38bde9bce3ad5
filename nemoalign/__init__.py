"""NVIDIA NeMo checkpoints through their whole life: convert, reshard, inspect, align, export."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nemoalign.restore import restore_from as restore_from

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import ``restore_from``, and torch with it, when somebody asks for it."""
    if name == "restore_from":
        from nemoalign.restore import restore_from

        return restore_from
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
