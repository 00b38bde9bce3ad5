"""NeMo-Aligner's keys of preference runs are settings with flags."""

import pytest

from nemoalign.config.algorithms import ALGORITHMS
from nemoalign.config.layers import Said
from nemoalign.config.merge import merge_run
from nemoalign.config.preference import PAIR_LOSSES, DpoSettings, KtoSettings, parse_losses
from nemoalign.errors import ConfigError


def test_flags_set_nemo_aligners_keys() -> None:
    dpo = {e.setting.flag: key for key, e in ALGORITHMS["dpo"].entries().items() if e.setting.flag}
    assert dpo["--beta"] == "model.dpo.ref_policy_kl_penalty"
    assert dpo["--loss"] == "model.dpo.preference_loss"
    assert dpo["--sft-weight"] == "model.dpo.sft_loss_weight"
    kto = {e.setting.flag: key for key, e in ALGORITHMS["kto"].entries().items() if e.setting.flag}
    assert kto["--desirable-weight"] == "model.kto.desirable_loss_weight"
    assert kto["--undesirable-weight"] == "model.kto.undesirable_loss_weight"


def test_what_an_algorithm_learns_from_is_no_setting() -> None:
    assert (DpoSettings.rows, KtoSettings.rows) == ("pairs", "labels")
    assert not any(key.endswith(".rows") for key in ALGORITHMS["dpo"].entries())


def test_losses_are_names_with_weights() -> None:
    assert parse_losses("dpo") == [("dpo", 1.0)]
    assert parse_losses("dpo:0.8, bco_pair:0.2") == [("dpo", 0.8), ("bco_pair", 0.2)]


@pytest.mark.parametrize(
    ("sets", "says"),
    [
        (["preference_loss=sigmoit"], r"--loss sigmoit is not known\. Use dpo, ipo"),
        (["preference_loss=dpo:half"], r"Write dpo:0\.5"),
        (["preference_loss=dpo:nan"], r"Write dpo:0\.5"),
        (["preference_loss=exo_pair"], r"Use --label-smoothing 1e-3, as TRL does"),
        (["preference_loss='dpo,apo_zero'", "f_divergence=forward_kl"], r"--loss apo_zero cannot take"),
        (["preference_loss='dpo,hinge:-1'"], r"weight below 0.*Write hinge:0\.5"),
        (["preference_loss=simpo", "reference_path=m.nemo"], r"--ref has no effect: --loss simpo"),
        (["preference_loss='orpo,sft'", "reference_cache=true"], r"--ref-cache has no effect"),
        (["preference_loss_weight=0"], r"both 0.* Set one of them to 1"),
    ],
)  # fmt: skip
def test_losses_that_cannot_be_are_refused_before_any_data_is_read(sets, says) -> None:
    with pytest.raises(ConfigError, match=says):
        merge_run("dpo", Said(sets=[f"model.dpo.{one}" for one in sets], environ={}))


def test_every_loss_is_offered_and_most_take_every_default() -> None:
    for name in PAIR_LOSSES:
        smoothing = 1e-3 if name == "exo_pair" else 0.0
        assert DpoSettings(preference_loss=name, label_smoothing=smoothing).losses == [(name, 1.0)]


def test_ipo_averages_unless_nemos_sum_is_asked_for() -> None:
    assert DpoSettings(preference_loss="ipo").losses == [("ipo", 1.0)]
    summed = DpoSettings(preference_loss="ipo:2", preference_average_log_probs=False)
    assert summed.losses == [("ipo_sum", 2.0)]
