import re

from nemoalign.train.report.read import Run
from nemoalign.train.report.rollouts import rollouts


def test_answers_stand_with_their_rewards_and_what_else_is_known_is_small(tmp_path) -> None:
    newest = {"step": 12, "prompt": "Say <b>", "response": "b & c", "reward": 1 / 3, "kl": 0.25, "finished": True, "ids": [1]}  # fmt: skip
    markup = rollouts(Run(tmp_path, rollouts=[[newest, newest], [{"step": 1, "response": "x"}]]))
    assert re.findall("<summary>(.*?)</summary>", markup) == ["step 12", "step 1"]
    assert markup.count("<details open=") == 1
    assert "<pre>Say &lt;b&gt;</pre>" in markup
    assert "<pre><mark>b &amp; c</mark></pre>" in markup
    assert '<td>0.33333<p class="soft">kl 0.25</p><p class="soft">finished yes</p></td>' in markup


def test_a_run_that_sampled_nothing_has_no_such_section(tmp_path) -> None:
    assert rollouts(Run(tmp_path)) == ""
