"""NeMo-Aligner's keys of preference runs are settings with flags."""

from nemoalign.config.algorithms import ALGORITHMS
from nemoalign.config.preference import DpoSettings, KtoSettings


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
