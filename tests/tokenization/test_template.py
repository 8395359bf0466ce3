from __future__ import annotations

from datetime import datetime
from typing import Any

import jinja2
import pytest

from sgl_router.tokenization.messages import ContentFormat
from sgl_router.tokenization.template import ChatTemplate, detect_content_format, detect_low_effort_variable

CHATML = """{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""
# In the manner of Llama 3: BOS, headers, a date, trimming, a system slot.
HEADERS = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\nToday: " + date_string + "\n\n" + system + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if message.role in ['user', 'assistant', 'tool'] %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim }}
        {%- if message.tool_calls is defined %}
            {%- for call in message.tool_calls %}
                {%- set call = call.function %}
                {{- '{"name": "' + call.name + '", "parameters": ' + call.arguments | tojson + '}' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|eot_id|>' }}
    {%- else %}
        {{- raise_exception('Unexpected role ' + message.role) }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}
"""
# In the manner of Qwen: tools as JSON lines, a namespace, reversed search, thinking, loop controls.
TOOLED = """{%- if tools %}
    {{- '<|im_start|>system\n# Tools\n<tools>' }}
    {%- for tool in tools %}
        {{- "\n" }}{{- tool | tojson }}
    {%- endfor %}
    {{- "\n</tools><|im_end|>\n" }}
{%- endif %}
{%- set ns = namespace(last=messages | length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages | length - 1) - loop.index0 %}
    {%- if message.role == "user" %}
        {%- set ns.last = index %}
        {%- break %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "tool" and loop.first %}{%- continue %}{%- endif %}
    {{- '<|im_start|>' + message.role + '\n' }}
    {%- if message.reasoning_content is defined and loop.index0 > ns.last %}
        {{- '<think>\n' + message.reasoning_content.strip('\n') + '\n</think>\n\n' }}
    {%- endif %}
    {{- message.content }}
    {%- for call in message.tool_calls or [] %}
        {{- '\n<tool_call>\n{"name": "' ~ call.function.name ~ '", "arguments": ' }}
        {{- call.function.arguments | tojson(ensure_ascii=False, indent=none) }}{{- '}\n</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
{%- endif %}
"""
MARKED = """{% for m in messages %}{% set x = 1 %}{% generation %}
  {% set x = 2 %}{{ m.content }}{% endgeneration %}{{ x }}{% endfor %}{{ messages | tojson(indent=2) }}"""
CONVERSATION: list[dict[str, Any]] = [
    {"role": "user", "content": ' what <b>is</b> "it"? 中é😀 '},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {"id": "c", "index": None, "type": "function", "function": {"name": "get", "arguments": {"q": "é<z>"}}}
        ],
    },
    {"role": "tool", "content": "r1", "tool_call_id": "c"},
]
TOOLS = [{"type": "function", "function": {"name": "get", "parameters": {"b": 1, "a": [None]}}, "defer_loading": None}]


@pytest.mark.parametrize("source", [CHATML, HEADERS, TOOLED, MARKED], ids=["chatml", "headers", "tooled", "marked"])
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["no tools", "tools"])
@pytest.mark.parametrize("variables", [{}, {"enable_thinking": False, "date_string": "1 May 2026", "bos_token": "B"}])
def test_rendering_equals_transformers(hf: Any, source: str, tools: Any, variables: dict[str, Any]) -> None:
    expected = hf.apply_chat_template(
        CONVERSATION, tools=tools, chat_template=source, tokenize=False, add_generation_prompt=True, **variables
    )
    special = {key: value for key, value in hf.special_tokens_map.items() if isinstance(value, str)}
    template = ChatTemplate(source, special)
    rendered = template.render(
        CONVERSATION, tools=tools, documents=None, add_generation_prompt=True, variables=variables
    )
    assert rendered == expected


def test_a_refusing_template_raises_what_transformers_raises(hf: Any) -> None:
    bad = [{"role": "system", "content": "s"}, {"role": "bogus", "content": "x"}]
    template = ChatTemplate(HEADERS, {})
    with pytest.raises(jinja2.TemplateError, match="Unexpected role bogus"):
        template.render(bad, tools=None, documents=None, add_generation_prompt=True, variables={})
    with pytest.raises(jinja2.TemplateError, match="Unexpected role bogus"):
        hf.apply_chat_template(bad, chat_template=HEADERS, tokenize=False)


def test_messages_reach_the_template_as_they_are(hf: Any) -> None:
    """Newer transformers would add a `thinking` alias here, which the engine's does not."""
    message = {"role": "assistant", "content": "x", "reasoning_content": "r"}
    template = ChatTemplate("{{ messages | tojson }}", {})
    rendered = template.render([message], tools=None, documents=None, add_generation_prompt=True, variables={})
    assert rendered == '[{"role": "assistant", "content": "x", "reasoning_content": "r"}]'


def test_the_date_is_todays() -> None:
    template = ChatTemplate("{{ strftime_now('%Y') }}", {})
    rendered = template.render([], tools=None, documents=None, add_generation_prompt=True, variables={})
    assert int(rendered) - datetime.now().year in (0, -1)


def test_variables_override_special_tokens_but_not_the_conversation() -> None:
    template = ChatTemplate(
        "{{ bos_token }}{{ eos_token }}{{ messages | length }}", {"bos_token": "<s>", "eos_token": "</s>"}
    )
    variables = {"bos_token": "B"}
    assert template.render([], tools=None, documents=None, add_generation_prompt=True, variables=variables) == "B</s>0"


def test_templates_are_sandboxed() -> None:
    template = ChatTemplate("{{ messages.append(1) }}", {})
    with pytest.raises(jinja2.TemplateError):
        template.render([], tools=None, documents=None, add_generation_prompt=True, variables={})


def test_a_broken_template_does_not_compile() -> None:
    with pytest.raises(jinja2.TemplateSyntaxError):
        ChatTemplate("{% for %}", {})


@pytest.mark.parametrize(
    "source",
    [
        "{% for part in message['content'] %}{% endfor %}",
        "{% for part in message.content %}{% endfor %}",
        "{% for part in msg.content | list %}{% endfor %}",
        "{% for part in m['content'][1:] | reject('none') %}{% endfor %}",
        "{% generation %}{% for part in m.content %}{% endfor %}{% endgeneration %}",
        "{{ '<image>' }}",
        "{# audio #}",
    ],
)
def test_templates_that_want_parts(source: str) -> None:
    assert detect_content_format(source) is ContentFormat.OPENAI


@pytest.mark.parametrize(
    "source",
    [
        CHATML,
        HEADERS,
        TOOLED,
        "{% for part in item.content %}{% endfor %}",
        "{% for part in message.parts %}{% endfor %}",
        "{% set content = message.content %}{% for part in content %}{% endfor %}",
        "{% for part in message[key] %}{% endfor %}",
        "{% for message in messages %}{% endfor %}",
        "{% for part in message.content %}",
        "",
    ],
)
def test_templates_that_want_text(source: str) -> None:
    assert detect_content_format(source) is ContentFormat.STRING


def test_the_low_effort_switch_belongs_to_one_family_of_templates() -> None:
    source = "{% if low_effort %}{% endif %}{{ truncate_history_thinking }}"
    assert detect_low_effort_variable(source) == "low_effort"
    assert detect_low_effort_variable(source + "<|channel|>") is None
    assert detect_low_effort_variable("{% if low_effort %}{% endif %}") is None


def test_keys_of_objects_are_found_as_jinja_finds_them() -> None:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    source = (
        "{{ m.role }}{{ m.missing is defined }}{{ m.missing }}{{ m.items is defined }}{{ m.keys() | list }}"
        "{{ m.get('role') }}{{ m.__class__ is defined }}{{ m.inner.x }}{{ m.inner.y }}{{ m['role'] }}"
    )
    message = {"role": "user", "items": 1, "get": 2, "__class__": 3, "inner": {"x": 4}}
    plain = ImmutableSandboxedEnvironment().from_string(source).render(m=message)
    template = ChatTemplate(source.replace("m.", "messages[0].").replace("m[", "messages[0]["), {})
    assert template.render([message], tools=None, documents=None, add_generation_prompt=True, variables={}) == plain
    with pytest.raises(jinja2.UndefinedError, match="no attribute 'missing'"):
        ChatTemplate("{{ messages[0].missing.x }}", {}).render(
            [message], tools=None, documents=None, add_generation_prompt=True, variables={}
        )
