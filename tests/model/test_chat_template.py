"""Templates come with models from strangers: nothing they write runs code, takes for ever, or fills the memory."""

import time

import pytest

from mlx_finetune.errors import DataError, ModelError
from mlx_finetune.model.chat_template import ChatTemplate, take_marks


def render(source: str, *, content: str = "x", **arguments: object) -> str:
    template = ChatTemplate(source, variables={"eos_token": "</s>"})
    messages = [{"role": "user", "content": content}]
    return template.render(messages, tools=None, add_generation_prompt=False, arguments=arguments)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ (messages|map(attribute='__class__')|list)[0].mro() }}",
        "{{ '{0.__class__}'.format(messages).mro() }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ self._TemplateReference__context.environment.loader.load() }}",
        "{{ namespace(__class__=1) }}",
        "{% set ns = namespace() %}{% set ns.__init__ = 1 %}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='system') }}",
        "{% include '/etc/passwd' %}",
        "{% import '/etc/passwd' as p %}",
    ],
)
def test_a_template_cannot_leave_its_sandbox(source: str) -> None:
    with pytest.raises(DataError):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{% for i in range(100000) %}{% for j in range(100000) %}{{ i }}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{{ 'a' * 1000000000 }}",
        "{{ [0] * 1000000000 }}",
        "{{ 10 ** 10 ** 10 }}",
        "{{ 'a'.ljust(1000000000) }}",
        "{{ 'a'|center(1000000000) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '{:>1000000000}'.format('a') }}",
        "{{ '%1000000000d'|format(1) }}",
        "{% set ns = namespace(t='ab') %}{% for i in range(60) %}{% set ns.t = ns.t ~ ns.t %}{% endfor %}{{ ns.t }}",
        "{% set ns = namespace(t='ab') %}{% for i in range(60) %}{% set ns.t = ns.t + ns.t %}{% endfor %}{{ ns.t }}",
        "{% set ns = namespace(t='ab') %}{% for i in range(60) %}{% set ns.t = ns.t|replace('a', ns.t) %}{% endfor %}",
        "{% set ns = namespace(t=['a']) %}{% for i in range(60) %}{% set ns.t = [ns.t|join, ns.t|join] %}{% endfor %}",
        "{% set t = 'ab' * 5000000 %}{% for i in range(100000) %}{% set u = t|upper %}{% endfor %}",
        "{% for i in range(99999) %}{{ 'a' * 100000 }}{% endfor %}",
        "{{ range(1000000000) }}",
    ],
)
def test_a_template_that_takes_too_much_is_stopped_within_seconds(source: str) -> None:
    start = time.monotonic()
    with pytest.raises(DataError):
        render(source)
    assert time.monotonic() - start < 10


def test_a_template_cannot_shadow_its_own_bounds() -> None:
    loops = "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}"
    with pytest.raises(DataError, match="too many turns"):
        render("{% set _tick = none %}{% set tick = none %}" + loops, _tick=None)


def test_what_a_template_raises_is_passed_on() -> None:
    with pytest.raises(DataError, match="refuses the conversation: Only one turn"):
        render("{{ raise_exception('Only one turn') }}")


@pytest.mark.parametrize("source", ["{% for %}", "{{ x", "{% generation %}", "{% unknown %}", "{{ 'a'|nofilter }}"])
def test_a_text_that_is_no_template_is_refused(source: str) -> None:
    with pytest.raises(ModelError, match="not valid Jinja"):
        ChatTemplate(source, variables={})


def test_json_is_written_without_html_escapes() -> None:
    assert render("{{ messages[0]|tojson }}", content="<é'&>") == '{"role": "user", "content": "<é\'&>"}'
    assert render("{{ {'b': 1, 'a': [1]}|tojson(indent=1) }}") == '{\n "b": 1,\n "a": [\n  1\n ]\n}'


def test_dates_are_pinned() -> None:
    assert render("{{ strftime_now('%d %b %Y') }}") == "26 Jul 2024"


def test_arguments_reach_the_template_but_cannot_replace_the_conversation() -> None:
    assert (
        render("{{ thinking }} {{ eos_token }} {{ messages[0].content }}", thinking=True, messages=1) == "True </s> x"
    )


def test_loop_controls_and_blocks_are_understood() -> None:
    source = "{% for i in range(9) %}\n  {%- if i == 2 %}{% break %}{% endif %}{{ i }}\n{% endfor %}"
    assert render(source) == "0\n1\n"


def test_generation_tags_are_found_only_where_they_are() -> None:
    assert ChatTemplate("{%- generation -%}a{%- endgeneration -%}", variables={}).has_generation_tags
    assert not ChatTemplate("{% call x() %}generation{% endcall %}", variables={}).has_generation_tags
    assert render("a{% generation %}b{% endgeneration %}c") == "abc"


def test_marks_are_taken_out_and_their_spans_given() -> None:
    template = ChatTemplate("a{% generation %}bc{% endgeneration %}d{% generation %}{% endgeneration %}", variables={})
    marked = template.render([], tools=None, add_generation_prompt=False, arguments={}, marks=True)
    assert take_marks(marked) == ("abcd", [(1, 3), (4, 4)])
