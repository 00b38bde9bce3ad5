"""What reward models have for themselves: ``model.rm``. NeMo-Aligner's own places for these keys are known too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from nemoalign.config.fields import AlgorithmSettings, setting

PANEL = "Loss"
SCORING = "Scoring"


@dataclass(frozen=True, kw_only=True)
class RmSettings(AlgorithmSettings):
    """Reward models: which of two answers is better, or what people said of one."""

    rows: ClassVar[Literal["rewards"]] = "rewards"
    free: ClassVar[tuple[str, ...]] = ("share_embeddings_and_output_weights",)

    reward_model_type: Literal["binary_ranking", "regression"] = setting(
        "binary_ranking",
        "Learn which of two answers is better (Bradley-Terry), or the scores that people gave.",
        flag="--reward-type",
        panel=PANEL,
    )
    use_margin: bool = setting(
        True,
        "binary_ranking: ask for the margin that a row gives.",
        flag="--margin/--no-margin",
        panel=PANEL,
    )
    center_rewards_coefficient: float = setting(
        0.0,
        "binary_ranking: weight of (chosen + rejected)^2, which holds rewards near 0.",
        flag="--center-rewards",
        at_least=0,
        panel=PANEL,
    )
    loss_func: Literal["regression", "regular_bt", "margin_bt", "scaled_bt"] = setting(
        "regression",
        "regression: squared error, or a Bradley-Terry loss of two rows after each other whose label is "
        "how much better the second is.",
        flag="--loss",
        implies={"model.rm.reward_model_type": "regression"},
        panel=PANEL,
    )
    num_attributes: int | None = setting(
        None, "regression: outputs of the head.", at_least=1, shown="as many as a row has labels"
    )
    loss_mask_val: float = setting(-100.0, "regression: a label that says nothing was judged.")
    merge_attributes: bool = setting(
        False, "regression: --score writes one number, the attributes' weighted sum."
    )
    attribute_weights: tuple[float, ...] | None = setting(
        None, "regression: weights of that sum.", shown="all the same, adding up to 1"
    )
    learn_bias: bool = setting(
        True,
        "regression: the head learns a bias; without one Hugging Face's classifier gives the same scores.",
    )
    use_avg_pool: bool = setting(
        False, "Reward of an answer: from the mean over all its tokens, instead of its last one."
    )
    load_rm_head_weights: bool | None = setting(
        None, "Go on with the checkpoint's own head.", shown="where it has one"
    )
    score_path: tuple[Path, ...] = setting(
        (),
        "Train nothing: write the rewards of the answers in this file to -o, a line each.",
        flag="--score",
        metavar="FILE",
        path_kind="file",
        transient=True,
        panel=SCORING,
    )

    @property
    def scores_answers(self) -> bool:
        """True when answers are learned one by one; pairs leave nothing to a bias but noise."""
        return self.reward_model_type == "regression" and self.loss_func == "regression"
