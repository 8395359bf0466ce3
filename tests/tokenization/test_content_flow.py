"""What a content does to a rendering: whatever a template does with it, a plan is right or there is none."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from sgl_router.tokenization.render_plan import RenderPlans
from sgl_router.tokenization.template import ChatTemplate

REST = {"tools": None, "documents": None, "add_generation_prompt": True}
# Followed: the content is shown, or asked about in a way that is checked for each conversation.
SHOWN = [
    "{{ m.content }}",
    "{{ m['content'] }}{{ m.get('content') }}{{ m.get('content', 'x') }}",
    "{{ '<' + m.content + '>' }}{{ m.role ~ m.content ~ 1 }}",
    "{{ m.content | trim }}|{{ m.content.strip() }}|{{ m.content.lstrip() }}|{{ m.content.rstrip() }}",
    "{{ m.content or 'empty' }}{{ m.content or '' }}{{ m.content | default('x') }}{{ m.content | string }}",
    "{{ m.content }}{{ 'full' if m.content else 'empty' }}{% if not m.content %}none{% elif m.content %}x{% endif %}",
    "{% if m.content and m.role %}{{ m.content }}{% endif %}",
    "{% if m.content is string and m.content is not none %}{{ m.content }}{% else %}{{ m.content.x }}{% endif %}",
    "{% set c = m.content %}{% set d = '[' + c | trim %}{{ d }}{{ c }}",
    "{% set ns.kept = m.content %}{{ ns.kept }}",
    "{{ ns.kept }}{{ m.content }}{% if loop.last %}{% set ns.kept = m.content %}{% endif %}",
    "{{ messages[0].content }}{{ messages[-1]['content'] }}{{ (messages | last).content }}{{ messages | length }}",
    "{{ loop.previtem.content if loop.previtem is defined }}{{ loop.index0 }}{{ loop.cycle('a', 'b') }}",
    "{% for n in messages[1:] %}{{ n.content }}{% endfor %}{% for n in messages[::-1] %}{{ n.role }}{% endfor %}",
    "{% for n in messages if n.role == 'user' %}{{ n.content }}{% endfor %}",
    "{% for n in messages | selectattr('role', 'equalto', 'user') %}{{ n.content }}{% endfor %}",
    "{% if m.content.startswith('a') %}A{% endif %}{% if m.content.endswith('b') %}B{% endif %}{{ m.content }}",
    "{% if 'secret' in m.content %}{{ m.content | upper }}{% else %}{{ m.content }}{% endif %}",
    "{{ m.content }}{% if 'b' not in m.content %}no{% endif %}{% if m.content == 'a' %}A{% endif %}",
    "{{ m.content }}{% if m.content != 'b' %}B{% endif %}",
    "{{ m.content }}{% if 'name' in m %}{{ m.name }}{% endif %}{% if m.tool_calls %}{{ m.tool_calls }}{% endif %}",
    "{% set block %}[{{ m.content }}]{% endset %}{{ block }}",
    "{% generation %}{{ m.content }}{% endgeneration %}{% if m.content == 3 or m.content == none %}?{% endif %}",
]
# Not followed where it is reached, or not at all.
LOOKED_INTO = [
    "{{ m.content | upper }}",
    "{{ m.content | length }}{{ m.content[0] }}{{ m.content[:1] }}",
    "{{ m }}{{ m | tojson }}{{ messages }}",
    "{{ m.items() | list }}{{ m.values() | list }}{{ m['con' ~ 'tent'] | upper }}",
    "{% for key in m %}{{ m[key] | upper }}{% endfor %}",
    "{% for key, value in m.items() %}{{ value | upper }}{% endfor %}",
    "{{ messages | map(attribute='content') | join('-') | upper }}",
    "{{ messages | map('upper') }}",
    "{{ [m.content] | join | upper }}{{ (m.content, 1)[0] | upper }}{{ {'a': m.content}.a | upper }}",
    "{{ '%s' % m.content | upper }}{{ '{}'.format(m.content) | upper }}{{ m.content * 2 }}",
    "{{ ('<b>' | safe) + m.content }}{{ ('<b>' | e) ~ m.content }}",
    "{% set safe = '<b>' | escape %}{{ safe + m.content }}",
    "{% set c %}{{ m.content }}{% endset %}{{ c | length }}{% if c %}{{ c | upper }}{% endif %}",
    "{{ (m.content ~ 'x') | length }}{{ (m.content | trim) or 'blank' }}{% if m.content | trim %}x{% endif %}",
    "{{ m.content < 'b' }}{{ m.content in ['a'] }}{{ m.content == m.role }}{{ 'a' in (m.content | trim) }}",
    "{{ m.content | default('x', true) | upper }}{{ m.content | trim('a') }}{{ m.content.strip('a') }}",
    "{{ m.content.split('a') | first }}{{ m.content.upper() }}{{ m.content.startswith(('a', 'b')) }}",
    "{% macro show(text) %}{{ text | upper }}{% endmacro %}{{ show(m.content) }}{{ show(text=m.content) }}",
    "{% macro last() %}{{ messages[-1].content }}{% endmacro %}{{ last() | upper }}{{ last() }}",
    "{% set make = namespace %}{% set own = make() %}{% set own.kept = m.content %}{{ own.kept | upper }}",
    "{% set own = namespace({'kept': m.content}) %}{{ own.kept | upper }}",
    "{% set own = namespace(kept=m.content) %}{{ own.kept | upper }}{{ own['kept'] | upper }}",
    "{% set own = namespace() %}{% set own.m = m %}{% set alias = own %}{{ alias.m.content | upper }}",
    "{% set a, b = m.content, m.role %}{{ a | upper }}{% set pair = [m, m] %}{{ pair[0].content | upper }}",
    "{% for letter in m.content %}{{ letter }}.{% endfor %}",
    "{% for a, b in [(m.content, 1)] %}{{ a | upper }}{% endfor %}",
    "{{ loop.changed(m.content) }}{{ cycler(m.content).next() | upper }}{{ dict(a=m.content).a | upper }}",
    "{% filter upper %}{{ m.content }}{% endfilter %}",
    "{% set messages = [m] %}{{ messages[0].content | upper }}",
    "{{ messages | selectattr('content', 'equalto', 'a') | list | length }}",
    "{{ messages | groupby('content') | length }}{{ messages | sort(attribute='content') | length }}",
    "{% if m.content == 'a' %}{% set c = m %}{% else %}{% set c = m.content %}{% endif %}{{ c | upper }}",
    "{% for n in messages recursive %}{{ n.content | upper }}{% endfor %}",
    "{% with c = m.content %}{{ c | upper }}{% endwith %}{{ m.content is equalto 'a' }}{{ m.content is lower }}",
    "{{ raise_exception(m.content) if m.content == 'b' }}{{ (m.content or m.role) | upper }}",
    "{{ (m if true else m.content) }}",
]
CONTENT = st.lists(
    st.sampled_from(["a", "b", "B", "secret", " ", "\n", "\u2003", "<&>", "é", "3", "{{ m }}"]), max_size=3
)
CONTENTS = st.lists(CONTENT.map("".join), min_size=3, max_size=3)


def template(*snippets: str) -> ChatTemplate:
    body = "".join(snippets)
    return ChatTemplate("{% set ns = namespace(kept='') %}{% for m in messages %}" + body + "<cut>{% endfor %}.", {})


def in_full(of: ChatTemplate, roles: list[str], contents: list[str]) -> str | None:
    messages: list[dict[str, Any]] = [{"role": r, "content": c} for r, c in zip(roles, contents, strict=True)]
    try:
        return of.render(messages, tools=None, documents=None, add_generation_prompt=True, variables={})
    except Exception:
        return None


@pytest.mark.parametrize("snippet", SHOWN)
def test_what_only_shows_contents_is_planned_once(snippet: str, monkeypatch: pytest.MonkeyPatch) -> None:
    of = template(snippet)
    plans = RenderPlans(of, "<cut>")
    roles = ["system", "user", "user"]
    assert plans.render(None, roles, ["x", " y ", "z"], REST) is not None
    followed = plans._followed
    assert followed is not None
    monkeypatch.setattr(type(followed), "render", None)
    for contents in (["1", "2", "3"], ["é ", "\n", " <x>"]):
        cut = plans.render(None, roles, contents, REST)
        assert cut is not None
        assert "".join([*cut.head, cut.tail]) == in_full(of, roles, contents)


@pytest.mark.parametrize("snippet", LOOKED_INTO)
def test_what_looks_into_contents_is_not_planned(snippet: str) -> None:
    plans = RenderPlans(template(snippet), "<cut>")
    assert plans.render(None, ["system", "user", "user"], ["b", "b", "b"], REST) is None


@settings(deadline=None, max_examples=300, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.sampled_from(SHOWN + LOOKED_INTO), min_size=1, max_size=3), st.lists(CONTENTS, min_size=2, max_size=5)
)
@example(["{{ ('<b>' | safe) + m.content }}"], [["a", "a", "a"], ["<", "<", "<"]])
def test_whatever_a_template_does_a_plan_renders_the_same(snippets: list[str], conversations: list[list[str]]) -> None:
    of = template(*snippets)
    plans = RenderPlans(of, "<cut>")
    roles = ["user", "assistant", "user"]
    for contents in conversations:
        cut = plans.render(None, roles, contents, REST)
        if cut is not None:
            assert "".join([*cut.head, cut.tail]) == in_full(of, roles, contents)
            assert all(piece.startswith("<cut>") for piece in [*cut.head, cut.tail][1:])
