import pytest

from nemoalign.data.rendering import marks_answers, render
from nemoalign.errors import DataError

HELLO = [{"role": "user", "content": "hello"}]


def plain(template, messages=HELLO, **more):
    return render(template, messages, add_generation_prompt=False, tools=None, variables={}, **more)


@pytest.mark.parametrize("spelling", ["{% generation %}", "{%- generation -%}", "{%generation%}"])
def test_generation_blocks_are_seen_however_they_are_spelled(spelling):
    assert marks_answers(spelling + "x{% endgeneration %}")
    assert not marks_answers("{% if add_generation_prompt %}generation{% endif %}")


def test_blocks_are_character_ranges():
    template = "a{% generation %}{{ messages[0].content }}{% endgeneration %}b"
    assert plain(template, marked=True) == ("ahellob", [(1, 6)])


def test_null_fields_are_left_out_as_transformers_does():
    messages = [{"role": "user", "content": "hi", "tool_calls": None}]
    assert plain("{{ 'tool_calls' in messages[0] }}", messages)[0] == "False"


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[7].content }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__ }}{{ messages[0].content + 1 }}",
        "{% if %}",
    ],
)
def test_whatever_a_template_stumbles_on_is_a_data_error(template):
    with pytest.raises(DataError, match="refuses this conversation"):
        plain(template)


def test_no_template_says_what_to_do():
    with pytest.raises(DataError, match=r"--tokenizer HF_DIR"):
        plain(None)
