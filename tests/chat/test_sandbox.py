"""Templates that nobody vouches for: each hostile one ends in one short error, quickly."""

import pytest

from moonlet.chat import meter
from moonlet.chat.sandbox import MAX_SOURCE, SandboxedTemplate, SandboxError


def grow(step: str, start: str = '"x"') -> str:
    """A template that applies `step` to ns.s a hundred times; doubling would need 2 ** 100."""
    loop = f"{{% for i in range(100) %}}{step}{{% endfor %}}{{{{ ns.s == ns.s }}}}"
    return f"{{% set ns = namespace(s={start}) %}}{loop}"


WORK, NUMBER = "more work", "a number is"
HOSTILE = {
    "nested loops": (
        "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
        WORK,
    ),
    "product": ("{{ 'x' * 10 ** 12 }}", WORK),
    "doubling by product": (grow("{% set ns.s = ns.s * 2 %}"), WORK),
    "doubling by sum": (grow("{% set ns.s = ns.s + ns.s %}"), WORK),
    "doubling by concatenation": (grow("{% set ns.s = ns.s ~ ns.s %}"), WORK),
    "doubling by output": (
        grow("{% set t %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = t %}"),
        WORK,
    ),
    "doubling by replace": (grow("{% set ns.s = ns.s.replace('x', 'xx') %}"), WORK),
    "doubling by the filter": (grow("{% set ns.s = ns.s | replace('x', 'xx') %}"), WORK),
    "doubling by join": (grow("{% set ns.s = ''.join([ns.s, ns.s]) %}"), WORK),
    "doubling by join filter": (grow("{% set ns.s = [ns.s, ns.s] | join %}"), WORK),
    "doubling by format": (grow("{% set ns.s = '%s%s' % (ns.s, ns.s) %}"), WORK),
    "nested lists": (grow("{% set ns.s = [ns.s, ns.s] %}", "[1]"), WORK),
    "nested tuples": (grow("{% set ns.s = (ns.s, ns.s) %}", "[1]"), WORK),
    "nested dicts": (grow("{% set ns.s = dict(a=ns.s, b=ns.s) %}", "[1]"), WORK),
    "nested products": (grow("{% set ns.s = [ns.s] * 9 %}", "[1]"), WORK),
    "refilled budget": (
        "{% for a in range(9999) %}{{ [1] | _rounds(-10**9) }}"
        "{% for b in range(9999) %}{% endfor %}{% endfor %}",
        WORK,
    ),
    "wide filter": ("{{ 'x' | center(1000000000) }}", NUMBER),
    "wide method": ("{{ 'x'.ljust(1000000000) }}", NUMBER),
    "wide percent": ("{{ '%1000000000d' % 1 }}", "too wide"),
    "wide format": ("{{ '{:1000000000}'.format(1) }}", "too wide"),
    "wide format filter": ("{{ '%1000000000d' | format(1) }}", "too wide"),
    "wide json": ("{{ [1] | tojson(indent=1000000000) }}", NUMBER),
    "tabs": ("{{ '\t'.expandtabs(9999) }}", "not allowed"),
    "power": ("{{ 9 ** 999999 }}", "exponent is too large"),
    "squares": (grow("{% set ns.s = ns.s * ns.s %}", "9"), NUMBER),
    "endless recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    "recursive loop": (
        "{% for a in [1] recursive %}{{ loop([1]) }}{% endfor %}",
        "recursive loops",
    ),
    "branching recursion": (
        "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(40) }}",
        WORK,
    ),
    "long output": ("{% for i in range(9999) %}" + "y" * 9999 + "{% endfor %}", WORK),
    "long source": ("x" * (MAX_SOURCE + 1), "characters"),
    "deep source": ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "recursion|parentheses"),
    "internals": ("{{ ''.__class__.__mro__ }}", "unsafe"),
    "mutation": ("{{ messages.append(1) }}", "unsafe"),
    "file": ("{% include '/etc/passwd' %}", "no loader"),
    "lipsum": ("{{ lipsum(999) }}", "undefined"),
    "syntax": ("{% if %}", "Expected an expression"),
    "unknown filter": ("{{ x | nofilter }}", "No filter named 'nofilter'"),
    "undefined": ("{{ a.b.c }}", "'a' is undefined"),
    "division": ("{{ 1 / 0 }}", "division by zero"),
    "refusal": ("{{ raise_exception('Roles must alternate.') }}", "^Roles must alternate$"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "MAX_WORK", 2**22)  # a second or two less for each
    source, message = HOSTILE[name]
    with pytest.raises(SandboxError, match=message) as caught:
        SandboxedTemplate(source).render(messages=[{"role": "user"}])
    assert len(str(caught.value)) < 250
    assert "\n" not in str(caught.value)


def busy(statement: str, start: str = "'x' * 2 ** 20") -> str:
    """`statement` as often as loops can repeat it; what it looks at is paid for once."""
    loops = "{% for i in range(9999) %}{% for j in range(9999) %}"
    ends = "{% endfor %}{% endfor %}"
    return f"{{% set s = {start} %}}{{% set t = s ~ '' %}}{loops}{statement}{ends}"


NESTED = grow("{% set ns.s = dict(a=ns.s, b=ns.s) %}", "'x' * 2 ** 20").replace("100", "16")
EXPENSIVE = {
    "in": busy("{% if 'y' in s %}{% endif %}"),
    "equal": busy("{% if s == t %}{% endif %}"),
    "test": busy("{% if s is lower %}{% endif %}"),
    "test of equality": busy("{% if s is eq t %}{% endif %}"),
    "test as an argument": busy("{{ s | select('lower') | list | length }}", "['x' * 999] * 999"),
    "in a list": busy("{% if -1 in s %}{% endif %}", "range(9999) | list").replace(" ~ ''", ""),
    "slice": busy("{% if s[1:] %}{% endif %}"),
    "date": busy("{% set d = strftime_now('%c' * 50) %}"),
    "filtered loop": busy("{% for k in range(9999) if false %}{% endfor %}"),
    "long body": busy("{% if a %}{% endif %}" * 9999),
    "sort": busy("{% set d = s | sort %}", "['x' * 999] * 999").replace(" ~ ''", ""),
    "key": busy("{% set d = {}[s] %}", "(1,) * 9999").replace(" ~ ''", ""),
    "join of a range": "{{ range(9999) | join('x' * 2 ** 20) }}",
    "join of an iterator": "{{ ('x' * 2 ** 20).join(range(9999) | map('string')) }}",
    "separators": "{{ range(9999) | list | tojson(separators=('x' * 2 ** 20, ':')) }}",
    "text of a view": NESTED + "{{ ns.s.items() ~ '' }}",
    "text of a refusal": NESTED + "{{ raise_exception(ns.s) }}",
    "pieces": "{{ ('ab' * 2 ** 24).split('b') }}",
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", EXPENSIVE)
def test_everything_is_paid_for_with_the_real_budget(name: str) -> None:
    template = SandboxedTemplate(EXPENSIVE[name])
    with pytest.raises(SandboxError, match="more work"):
        template.render()


LOOKS = [
    *("s[1:]", "s[:-1]", "'y' in s", "s in 'y'", "s < 'y'", "'y' < s", "1 < 2 == s", "{}[s]"),
    *("s is lower", "s is in 'y'", "'y' is in s", "'y' is eq s", "{s: 1}", "s + 'y'", "s ~ 'y'"),
    *("[s] | select('upper') | list", "strftime_now(s)", "[s]", "s | upper", "s.upper()"),
]


@pytest.mark.parametrize("expression", LOOKS)
def test_looking_costs_what_there_is_to_see(
    expression: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meter, "MAX_WORK", 99_999)
    template = SandboxedTemplate(f"{{% if {expression} %}}{{% endif %}}")
    template.render(s="x" * 10)
    with pytest.raises(SandboxError, match="more work"):
        template.render(s="x" * 100_000)


@pytest.mark.parametrize("expression", ["s is string", "s is defined", "not s", "s and s", "l[0]"])
def test_what_takes_no_time_costs_little(expression: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "MAX_WORK", 9999)
    template = SandboxedTemplate(f"{{% if {expression} %}}{{% endif %}}")
    template.render(s="x" * 10_000, l=[1] * 10_000)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ strftime_now('%c' * 99) }}", "longer than 100"),
        ("{{ ('<!---->' * 9) | striptags }}", "striptags is not allowed"),
        ("{{ (('<!---->' * 9) | safe).striptags() }}", "striptags is not allowed"),
        ("{{ ('{0:999}' * 9).format(1) }}", "too wide"),
        ("{{ '%(a)999d' % {'a': 1} }}", "too wide"),
    ],
)
def test_what_no_chat_template_needs(source: str, message: str) -> None:
    with pytest.raises(SandboxError, match=message):
        SandboxedTemplate(source).render()


def test_the_clock_stops_a_render(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meter, "MAX_SECONDS", -1.0)
    with pytest.raises(SandboxError, match="more work"):
        SandboxedTemplate("{{ 1 }}").render()


def test_numbers_are_not_sizes() -> None:
    source = "{{ n }},{{ n + 1 }},{{ n == m }},{{ {'maximum': n} | tojson }},{{ 'In 2024 %s' % n }}"
    text = SandboxedTemplate(source).render(n=2**62, m=2**62)
    assert text == f'{2**62},{2**62 + 1},True,{{"maximum": {2**62}}},In 2024 {2**62}'


def test_a_namespace_does_not_show_what_it_holds() -> None:
    assert SandboxedTemplate("{{ namespace(a='secret') }}").render() == "<namespace>"


def test_what_chat_templates_use() -> None:
    source = """{%- macro show(m) -%}<{{ m.role | upper }}>{{ m['content'] | trim }}{%- endmacro -%}
    {%- set ns = namespace(last=-1) -%}
    {%- for m in messages -%}
        {%- if m.role == 'skip' -%}{%- continue -%}{%- endif -%}
        {%- if m.role == 'end' -%}{%- break -%}{%- endif -%}
        {%- set ns.last = loop.index0 -%}
        {{ show(m) }}{{ '' if loop.last else ',' }}
    {%- endfor -%}
    {{ ns.last ~ '|' ~ (messages | length) }}|{{ tools | tojson(separators=(',', ':')) }}
    {%- if tools is defined and not missing and 'x' in tools[0].name %}|{{ messages[-1]['role'] }}{% endif %}
    {%- set a, b = (1, 2) -%}|{{ a + b }}|{{ {'k': [1, 'é']} | tojson }}|{{ strftime_now('%Y') | length }}"""
    messages = [{"role": role, "content": " é "} for role in ("user", "skip", "system", "end")]
    text = SandboxedTemplate(source).render(messages=messages, tools=[{"name": "x<y"}])
    assert text == '<USER>é,<SYSTEM>é,2|4|[{"name":"x<y"}]|end|3|{"k": [1, "é"]}|4'


def test_blocks_are_trimmed_as_transformers_does() -> None:
    source = "a\n  {% if true %}\nb\n  {% endif %}\nc\n"
    assert SandboxedTemplate(source).render() == "a\nb\nc"


def test_a_long_conversation_stays_within_the_budget() -> None:
    source = (
        "{% for m in messages %}{% for p in m.content %}{{ '<' ~ m.role ~ '>' + p.text | trim }}"
        "{% endfor %}{{ messages | length }}{% endfor %}"
    )
    part = {"type": "text", "text": "word " * 1000}
    messages = [{"role": "user", "content": [part, part]} for _ in range(300)]
    text = SandboxedTemplate(source).render(messages=messages)
    assert len(text) > 3_000_000


def test_every_render_has_its_own_budget() -> None:
    template = SandboxedTemplate("{% for i in range(9000) %}{{ 'x' * 9000 }}{% endfor %}")
    for _ in range(3):
        with pytest.raises(SandboxError, match="its output"):
            template.render()
    small = SandboxedTemplate("{% for i in range(9000) %}{{ i }}{% endfor %}")
    assert all(small.render() for _ in range(30))
