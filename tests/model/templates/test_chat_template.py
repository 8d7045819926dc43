"""Templates come with models from strangers: nothing they write runs code, takes for ever, or fills the memory."""

import time

import pytest
from jinja2.exceptions import UndefinedError
from jinja2.sandbox import SandboxedEnvironment

from mlx_finetune.errors import DataError, MlxftError, ModelError
from mlx_finetune.model.templates.chat_template import ChatTemplate, take_marks


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
    with pytest.raises(MlxftError):
        render(source)
    assert time.monotonic() - start < 10


DOUBLED = "{%% set ns = namespace(t=%s) %%}{%% for i in range(60) %%}{%% set ns.t = %s %%}{%% endfor %%}%s"
MANY = "{%% set t = 'a' * 4000000 %%}{%% set u = t ~ '' %%}{%% for i in range(100000) %%}%s{%% endfor %%}"
MUCH_FROM_LITTLE = {
    "a list of itself twice, written": DOUBLED % ("['a']", "[ns.t, ns.t]", "{{ ns.t }}"),
    "a list of itself twice, as JSON": DOUBLED % ("['a']", "[ns.t, ns.t]", "{{ ns.t|tojson }}"),
    "a dictionary of itself twice": DOUBLED % ("{}", "{'a': ns.t, 'b': ns.t}", "{{ ns.t|string }}"),
    "views of a dictionary": DOUBLED % ("[1]", "{'a': ns.t, 'b': ns.t}.values()", "{{ ns.t|string }}"),
    "a list of map": DOUBLED % ("[1]", "[0, 0]|map('default', ns.t, true)|list", "{{ ns.t|string }}"),
    "a tuple as a key": DOUBLED % ("(1,)", "(ns.t, ns.t)", "{{ {ns.t: 1}|length }}"),
    "arguments of a macro": "{% set ns = namespace(t=(1,)) %}{% macro f() %}{% set ns.t = varargs %}{% endmacro %}"
    "{% for i in range(60) %}{% set x = f(ns.t, ns.t) %}{% endfor %}{{ ns.t }}",
    "blocks that call blocks": "".join(
        f"{{% block b{n} %}}{{{{ self.b{n + 1}() }}}}{{{{ self.b{n + 1}() }}}}{{% endblock %}}" for n in range(60)
    )
    + "{% block b60 %}{% endblock %}",
    "text in a set block": MANY % "{% set x %}{{ t }}{{ t }}{% endset %}",
    "a block set in many turns": "{% set t = 'a' * 4000000 %}{% set x %}{% for i in range(1000) %}{{ t }}{% endfor %}"
    "{% endset %}",
    "plain text in a set block": "{% set x %}{% for i in range(90000) %}" + "A" * 100_000 + "{% endfor %}{% endset %}",
    "a long macro": "{% macro f() %}{% for i in range(999) %}{{ 'a' * 99999 }}{% endfor %}{% endmacro %}{{ f() }}",
    "replace": "{{ ('a' * 100000)|replace('a', 'b' * 100000) }}",
    "the method replace": "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
    "join": "{{ ([1] * 100000)|join('b' * 100000) }}",
    "join of map": "{{ range(100000)|map('string')|join('b' * 100000) }}",
    "the method join": "{{ ('b' * 100000).join(['a'] * 100000) }}",
    "indent": "{{ ('\n' * 100000)|indent(100000, blank=true) }}",
    "indent by a text": "{{ ('\n' * 100000)|indent('a' * 100000, blank=true) }}",
    "format with many fields": "{{ ('{0:>9999}' * 400000).format('a') }}",
    "format with a large text": "{{ ('{0}' * 100000).format('a' * 100000) }}",
    "format with a width from outside": "{{ ('{0:{1}}' * 1000).format('a', 4000000) }}",
    "the filter format": "{{ ('%(a)s' * 100000)|format(a='a' * 100000) }}",
    "expandtabs": "{{ ('\t' * 100000).expandtabs(100000) }}",
    "translate": "{{ ('a' * 100000).translate({97: 'b' * 100000}) }}",
    "format_map": "{{ ('{a}' * 100000).format_map({'a': 'b' * 100000}) }}",
    "bytes": "{{ 'a'.encode() * 2000000000 }}",
    "a wide JSON": "{{ ([1] * 100000)|tojson(indent=100000) }}",
    "a long date": "{{ strftime_now('%c' * 1000000) }}",
    "comparing": MANY % "{% if t == u %}{% endif %}",
    "searching": MANY % "{% if 'b' in t %}{% endif %}",
    "slicing": MANY % "{% set x = t[1:] %}",
    "counting": MANY % "{{ t.count('b') }}",
    "a test": MANY % "{% if t is lower %}{% endif %}",
    "joining with ~": "{% set t = 'a' * 4000000 %}{{ " + " ~ ".join(["t"] * 500) + " }}",
    "a loop that leaves all out": MANY % "{% for j in range(100000) if false %}{% endfor %}",
    "a long body": "{% for i in range(90000) %}" + "{{ i|abs }}" * 4000 + "{% endfor %}",
    "lists in lists": "{% set ns = namespace(l=[]) %}{% for i in range(99999) %}"
    "{% set ns.l = ns.l + [range(100000)|list] %}{% endfor %}",
    "selecting": "{% for i in range(99999) %}{% set x = range(100000)|select('none')|list %}{% endfor %}",
    "sum of lists": "{{ ([[1] * 1000] * 4000)|sum(start=[]) }}",
}


USES_ALL_WORK = {"blocks that call blocks", "a long body", "lists in lists", "selecting"}  # some seconds each
CASES = [pytest.param(case, marks=pytest.mark.slow if case in USES_ALL_WORK else ()) for case in MUCH_FROM_LITTLE]


@pytest.mark.parametrize("case", CASES)
def test_what_could_make_much_from_little_is_reckoned_before_it_is_done(case: str) -> None:
    start = time.monotonic()
    with pytest.raises(MlxftError, match=r"was stopped|is unsafe"):
        render(MUCH_FROM_LITTLE[case])
    assert time.monotonic() - start < 10


def test_a_namespace_does_not_show_what_it_holds() -> None:
    assert render(DOUBLED % ("1", "namespace(a=ns.t, b=ns.t)", "{{ ns.t }}")) == "<namespace>"


def test_a_bound_is_the_templates_fault_unless_the_conversation_is_large() -> None:
    source = "{{ messages[0].content * 20 }}"
    assert len(render(source, content="x" * 100_000)) == 2_000_000
    with pytest.raises(ModelError, match="was stopped: it builds a value longer than 5,000,000 characters"):
        render(source, content="x" * 300_000)
    with pytest.raises(DataError, match="was stopped"):
        render(source, content="x" * 600_000)


def test_a_long_conversation_with_much_text_is_no_attack() -> None:
    source = (
        "{% for m in messages %}{% if loop.index0 == messages|length - 1 %}last{% endif %}"
        "{% set later = messages[loop.index:]|selectattr('role', 'equalto', 'user')|list %}"
        "{{ m.role ~ ': ' ~ m.content|trim|replace('<think>', '') }}{% endfor %}"
    )
    messages = [{"role": "user", "content": "word " * 600} for _ in range(400)]
    template = ChatTemplate(source, variables={})
    assert len(template.render(messages, tools=None, add_generation_prompt=False, arguments={})) > 1_000_000


def test_words_a_template_chooses_are_one_printable_line() -> None:
    with pytest.raises(DataError) as caught:
        render("{{ raise_exception('a\\nb\\x1b[2J' ~ 'c' * 100000) }}")
    assert caught.value.message.startswith("the chat template refuses the conversation: a b [2Jccc")
    assert len(caught.value.message) < 400
    assert caught.value.message.isprintable()


def test_a_text_longer_than_any_template_is_refused_before_it_is_compiled() -> None:
    with pytest.raises(ModelError, match="has 200,001 characters"):
        ChatTemplate("x" * 200_001, variables={})


def test_a_template_cannot_shadow_its_own_bounds() -> None:
    loops = "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}"
    with pytest.raises(ModelError, match="too many turns"):
        render("{% set _tick = none %}{% set tick = none %}" + loops, _tick=None)


def test_what_a_template_raises_is_passed_on() -> None:
    with pytest.raises(DataError, match="refuses the conversation: Only one turn"):
        render("{{ raise_exception('Only one turn') }}")


@pytest.mark.parametrize(
    "source",
    [
        "{% for %}",
        "{{ x",
        "{% generation %}",
        "{% unknown %}",
        "{{ 'a'|nofilter }}",
        "{{ 1|random }}",
        "{% for a in b %}" * 25 + "{% endfor %}" * 25,
    ],
)
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


@pytest.mark.parametrize(
    "expression",
    [
        "'a' + 'b' + content + 'c'",
        "'a' + ('b' + content) + ('c' + ('d' + 'e'))",
        "1 + 2 + 3.5",
        "[1] + [content] + [[2]]",
        "(1, 2) + (3,) + (content,)",
        "'<' + ('<b>'|safe) + '<' + content",
        "('<'|safe) + '<'",
        "'a' + 1|string + content|upper + 'b' * 3",
        "content + content[1:] + content",
        "'a' + 'b' == 'ab'",
        "('' + '') + ''",
        "-1 + 2 - 3 + 4",
    ],
)
def test_sums_are_those_of_jinja(expression: str) -> None:
    plain = SandboxedEnvironment().from_string("{{ " + expression + " }}").render(content="x<y")
    assert render("{% set content = 'x<y' %}{{ " + expression + " }}") == plain


@pytest.mark.parametrize(
    "expression", ["'a' + 1", "'a' + 'b' + none", "'a' + missing", "missing + 'a' + 'b'", "[1] + 'a'", "{} + {}"]
)
def test_sums_that_jinja_refuses_are_refused(expression: str) -> None:
    with pytest.raises((TypeError, UndefinedError)):
        SandboxedEnvironment().from_string("{{ " + expression + " }}").render()
    with pytest.raises(DataError):
        render("{{ " + expression + " }}")


def test_a_long_sum_is_refused_before_it_is_made_and_each_part_of_it_is_paid_for() -> None:
    text = "{% set t = 'a' * 4000000 %}"
    with pytest.raises(ModelError, match="longer than 5,000,000"):
        render(text + "{{ t + t }}")
    with pytest.raises(ModelError, match="was stopped"):
        render("{% set l = range(90000)|list %}{% set m = " + " + ".join(["l"] * 200) + " %}")
    with pytest.raises(ModelError, match="was stopped"):
        render("{% set t = 'a' * 100000 %}{% for i in range(9000) %}{% set u = t + t + t %}{% endfor %}")


def test_the_numbers_of_a_loop_are_those_of_jinja_and_nothing_hidden_comes_with_them() -> None:
    parts = ["first", "last", "index", "index0", "revindex", "revindex0", "length", "depth", "previtem", "nextitem"]
    source = "{% for i in [7, 8, 9] %}" + " ".join("{{ loop." + part + " }}" for part in parts) + "{% endfor %}"
    assert render(source) == SandboxedEnvironment().from_string(source).render()
    for hidden in ("__class__", "_iterable", "__init__"):
        with pytest.raises(DataError):
            render("{% for i in [1] %}{{ loop." + hidden + ".mro }}{% endfor %}")
