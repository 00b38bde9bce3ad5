"""Sliding windows: config.json counts the positions a query sees, model_config.yaml those before it.

megatron-core's ``window_size: [w, 0]`` shows a query its own position and the w before it; Hugging Face's
``sliding_window: W`` shows it W positions, its own included. So W = w + 1, both ways and exactly.
(NeMo's own converter writes [W, 0], which is one position more than the original model saw.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from nemoalign.config.architecture import Architecture
from nemoalign.errors import ContentError
from nemoalign.weights.config_rules import Fields


@dataclass(frozen=True)
class Window:
    """One window for all layers; ``default`` is what transformers assumes when the field is absent."""

    default: int | None = None

    def to_nemo(self, hf: Fields) -> dict[str, Any]:
        """Return window_size."""
        return {"window_size": _window_size(hf.get("sliding_window", self.default))}

    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        """Return sliding_window, null for none."""
        return {"sliding_window": visible_positions(arch)}


@dataclass(frozen=True)
class LayerWindow:
    """A window that config.json may ask for in some layers only, which a ``.nemo`` cannot represent."""

    default: int = 4096

    def to_nemo(self, hf: Fields) -> dict[str, Any]:
        """Return window_size where every layer has the window or none does.

        Raises:
            ContentError: when some layers have it.
        """
        count, layers = _windowed_layers(hf), int(hf["num_hidden_layers"])
        if count == 0:
            return {"window_size": None}
        if count < layers:
            raise ContentError(
                f"config.json has a sliding window in {count} of {layers} layers "
                "(use_sliding_window, max_window_layers, layer_types); a .nemo has one window for "
                "all layers, so it cannot represent this model."
            )
        return {"window_size": _window_size(hf.get("sliding_window", self.default))}

    def to_hf(self, arch: Architecture) -> dict[str, Any]:
        """Return the window and, as the first layer that has it, 0 or one past the last."""
        positions = visible_positions(arch)
        return {
            "use_sliding_window": positions is not None,
            "sliding_window": positions,
            "max_window_layers": arch.num_layers if positions is None else 0,
        }


def visible_positions(arch: Architecture) -> int | None:
    """Return how many positions a query sees, its own included; None for all before it.

    Raises:
        ContentError: for a window that reaches into the future.
    """
    if arch.window_size is None:
        return None
    before, after = arch.window_size
    if after:
        raise ContentError(
            f"model_config.yaml has window_size [{before}, {after}]; Hugging Face has only windows "
            "that end at the query's own position."
        )
    return before + 1


def _window_size(positions: Any) -> list[int] | None:
    if positions is None:
        return None
    if isinstance(positions, bool) or not isinstance(positions, int) or positions < 1:
        raise ContentError(
            f"config.json has sliding_window {positions!r:.60}, which is no number above 0."
        )
    return [positions - 1, 0]


def _windowed_layers(hf: Fields) -> int:
    """Return how many layers have the window, by transformers' rules."""
    layers = int(hf["num_hidden_layers"])
    kinds: Any = hf.get("layer_types")
    if not hf.get("use_sliding_window"):
        return 0
    if kinds is None:
        return max(0, layers - max(0, int(hf.get("max_window_layers", 28))))
    named = [str(kind) for kind in cast("list[Any]", kinds)]
    unknown = set(named) - {"full_attention", "sliding_attention"}
    if unknown or len(named) != layers:
        raise ContentError(
            f"config.json has layer_types {', '.join(sorted(unknown)) or len(named)} for {layers} "
            "layers, which a .nemo cannot represent."
        )
    return named.count("sliding_attention")
