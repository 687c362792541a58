#!/usr/bin/env python3
"""Renders templates with Jinja2, for tests/chat/template_cases_test.cc: python3 make_template_cases.py > testdata/template_cases.json

Needs the package jinja2. The environment is that of Hugging Face's apply_chat_template: trim_blocks, lstrip_blocks, and its own
tojson. The templates are ours; together they use every construct that published chat templates use.
"""
import json
import sys

import jinja2
from jinja2.sandbox import SandboxedEnvironment


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


env = SandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
env.filters["tojson"] = tojson
env.filters["from_json"] = json.loads
env.globals["raise_exception"] = raise_exception

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Gets the weather.\nFor a city",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "The city \"name\""},
                "days": {"type": "integer", "default": 3},
                "unit": {"type": "string", "enum": ["c", "f"]},
                "box": {"type": "object", "properties": {"x": {"type": ["number", "null"]}}},
            },
            "required": ["city"],
        },
    },
}
CALL = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Zürich <b>", "days": 2, "deep": [1.5, None, True]}}}
CONVERSATIONS = [
    [{"role": "user", "content": "Hi"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "  héllo 世界 <|im_end|>\n"}],
    [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": None, "reasoning_content": "\nLet me see.\n", "tool_calls": [CALL, CALL]},
        {"role": "tool", "content": "{\"t\": 20}", "tool_call_id": "c1"},
        {"role": "tool", "content": "rain", "tool_call_id": "c1"},
        {"role": "assistant", "content": "<think>\nmany\n</think>\n\nIt rains."},
        {"role": "user", "content": "thanks"},
    ],
]

# Whole templates, rendered with every conversation, with and without tools and a generation prompt.
TEMPLATES = [
    # A plain one.
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + (message['content'] or '') + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    # White space control in all its forms.
    """{%- if messages[0].role == 'system' -%}
    {%- set system = messages[0].content -%}
    {%- set rest = messages[1:] -%}
{%- else -%}
    {%- set rest = messages -%}
{%- endif -%}
{{- bos_token -}}
{% if system is defined %}
  [SYS]{{ system }}[/SYS]
{% endif %}
    {% for m in rest %}
  {# a comment #}
  {%+ if m.role == "user" %} U:{{ m.content | trim }}
    {%- elif m.role == "assistant" +%}
 A:{{ (m.content or "") | trim }}{{ "</s>" }}

    {% else %}
 T{{ loop.index0 }}/{{ loop.length }}:{{ m.content }}
    {% endif %}
{% endfor %}
{%- if add_generation_prompt %} A:{% endif %}
""",
    # Tools, a search from the end with a namespace, reasoning split off the content.
    """{%- if tools %}
    {{- '# Tools\\n<tools>' }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- '\\n</tools>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step and message.role == "user" and message.content is string and not(message.content.startswith('<r>') and message.content.endswith('</r>')) %}
        {%- set ns.multi_step = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if message.role == "assistant" %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last and (loop.last or (not loop.last and reasoning)) %}
            {{- '<think>' + reasoning.strip('\\n') + '</think>' + content.lstrip('\\n') }}
        {%- else %}
            {{- content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}{{- '\\n' }}{%- endif %}
                {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
                {{- '<tool_call>{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}
                {%- if tool_call.arguments is string %}{{- tool_call.arguments }}{%- else %}{{- tool_call.arguments | tojson }}{%- endif %}
                {{- '}</tool_call>' }}
            {%- endfor %}
        {%- endif %}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<user>' }}{%- endif %}
        {{- content }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '</user>' }}{%- endif %}
    {%- else %}
        {{- '[' ~ message.role ~ ']' ~ content }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<a>' }}{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think></think>' }}{%- endif %}{%- endif %}
""",
    # Recursive macros with default and keyword arguments, over schemas.
    """{%- macro type_of(spec, required=false, depth=0) -%}
    {%- if spec.type is string and spec.type == "object" -%}
        {%- if spec.properties is defined and spec.properties -%}
            {{- "{\\n" -}}
            {%- for name, value in spec.properties.items() -%}
                {{- '  ' * (depth + 1) ~ name -}}{{- "?" if name not in (spec.required or []) -}}
                {{- ": " ~ type_of(value, depth=depth + 1) -}}
                {%- if value.default is defined %}{{ " // default: " ~ value.default|tojson }}{% endif -%}
                {%- if not loop.last %}{{ "," }}{% endif %}{{ "\\n" }}
            {%- endfor -%}
            {{- '  ' * depth ~ "}" -}}
        {%- else -%}object{%- endif -%}
    {%- elif spec.enum -%}
        {{- '"' + spec.enum|join('" | "') + '"' -}}
    {%- elif spec.type is iterable and spec.type is not string -%}
        {{- spec.type | join(" | ") -}}
    {%- else -%}{{- spec.type | upper if required else spec.type -}}{%- endif -%}
{%- endmacro -%}
{%- macro tools_section(items) -%}
    {%- for tool in items -%}
        {%- set f = tool.function -%}
        {%- for line in f.description.split("\\n") %}// {{ line }}
{% endfor -%}
        type {{ f.name }} = (_: {{ type_of(f.parameters, required=true) }}) => any;
    {%- endfor -%}
{%- endmacro -%}
{%- if tools is not none and tools is defined %}{{ tools_section(tools) }}{% endif -%}
{%- for m in messages if m.role != "system" -%}
<|{{ m.role }}|>{{ m.content if m.content is not none else "" }}{{ "" if loop.last else "+" }}
{%- else -%}nothing{%- endfor -%}
""",
    # Arguments one by one, neighbours of the loop, sets by block.
    """{%- set lines %}{% for m in messages %}{{ m.role[0] | upper }}{{ loop.previtem.role if loop.previtem is defined else '^' }}{{ loop.nextitem.role if not loop.last else '$' }} {% endfor %}{% endset -%}
{{ lines | trim }}|{{ lines | length }}
{%- for m in messages %}{% if m.tool_calls is defined and m.tool_calls %}{% for tc in m.tool_calls %}
<tool_call>{{ tc.function.name }}
{% set _args = tc.function.arguments %}
{% for k, v in _args.items() %}
<arg_key>{{ k }}</arg_key>
<arg_value>{{ v | tojson(ensure_ascii=False) if v is not string else v }}</arg_value>
{% endfor %}
</tool_call>{% endfor %}{% endif %}{% endfor %}
{%- for m in messages %}
{% if m.role not in ['system', 'user', 'assistant', 'tool'] %}{{ raise_exception('role ' ~ m.role) }}{% endif %}
{% endfor -%}
""",
]

# Expressions, each printed by a template of its own.
EXPRESSIONS = """
1 + 2 * 3 - 4 / 2
7 // 2, -7 // 2, 7 % 3, -7 % 3, 7 % -3, 2 ** 10, 2 ** -1, -2 ** 2
7.5 // 2, -7.5 % 2, 1e3, 1.0, 0.1 + 0.2, 1e16, 1e15, 1e-4, 1e-5, 123456789.123, 100000000000000000000.0
1 / 3, 2.5 | round, 3.5 | round, 2.675 | round(2), 2.1 | round(0, 'ceil'), 2.9 | round(method='floor')
true, false, none, True, False, None
not true, not none, not '', not 'a', not [], not [0]
1 == 1.0, 1 == true, '1' == 1, none == false, [1, 2] == [1, 2], [1, 2] == (1, 2), {'a': 1} == {'a': 1.0}
1 < 2 < 3, 1 < 3 < 2, 'a' < 'b', 'a' < 'B', [1, 2] < [1, 3], 3 >= 3.0, 1 != 2 != 1
'a' in 'abc', 'a' not in 'abc', 1 in [1, 2], 'k' in {'k': 1}, 3 not in (1, 2), 'x' in nothing
1 and 2, 0 and 2, 1 or 2, 0 or 2, '' or none, 'a' and [] or 'b'
'a' ~ 1 ~ none ~ 1.5 ~ true ~ [1, 'x'] ~ nothing
'a' + 'b' * 3, [1] + [2], [0] * 3, (1,) + (2,), 2 * 'xy'
'x' if true else 'y', 'x' if false else 'y', 'x' if false, ('a' if 0 else 'b' if 1 else 'c')
[1, 'two', 3.0, none, [4], (5,), {'k': 'v', 1: 2}, (), [], {}]
"it's", 'say "x"', ["it's", 'say "x"', "both ' and \\"", 'tab\\t nl\\n bs\\\\', 'é世😀', '\\x07\\u00a0\\u200b']
'\\x41\\u00e9\\U0001F600\\101\\q', "a\\'b", 'adjacent ' 'strings'
'hello'[1], 'hello'[-1], 'hello'[1:3], 'hello'[::-1], 'hello'[:-1], 'hello'[-3:], 'hello'[::2], 'hello'[10:], 'hello'[3:1], 'h世界'[1:]
[1, 2, 3, 4][1:], [1, 2, 3, 4][::-1], [1, 2, 3, 4][:2], [1, 2, 3, 4][-1], [1, 2, 3][5:], [1, 2, 3, 4][3:0:-2], (1, 2, 3)[:2]
{'a': {'b': [10, 20]}}.a.b[1], {'a': 1}['a'], {'a': 1}.get('b'), {'a': 1}.get('b', 2), [[1, 2]].0.1
{'a': 1}.x is defined, {'a': 1}['x'] is defined, [1][3] is defined, nothing is defined, nothing is undefined, none is defined
none is none, 0 is none, 's' is string, 1 is string, {} is mapping, [] is mapping, [] is iterable, 's' is iterable, 1 is iterable
[] is sequence, () is sequence, {} is sequence, 's' is sequence, 1 is number, 1.5 is number, true is number, 's' is number
1 is integer, true is integer, 1.0 is float, 1 is float, true is boolean, 1 is boolean, true is true, 1 is true, false is false, 0 is false
4 is even, 4 is odd, 9 is divisibleby 3, 9 is divisibleby(2), 3 is eq 3, 3 is gt(2), 3 is lt 2, 3 is in [1, 3], 'a' is lower, 'A' is upper, 'a' is equalto 'a'
not nothing is defined, 1 is not none and 2 is not string, 1 + 1 is number
'  a b '.strip(), 'xxaxx'.strip('x'), 'xxaxx'.lstrip('x'), 'xxaxx'.rstrip('x'), 'abcba'.strip('ab'), '\\u3000a\\n'.strip()
'a,b,,c'.split(','), 'a,b,c'.split(',', 1), ' a  b '.split(), ' a  b c'.split(none, 1), 'abc'.split('x'), 'a,b,c'.rsplit(',', 1), ''.split(','), ''.split()
'Hello'.upper(), 'Hello'.lower(), 'hELLO wORLD'.capitalize(), "they're bill's x".title(), 'éß'.upper() | length > 1
'hello'.startswith('he'), 'hello'.endswith('lo'), 'hello'.startswith(('x', 'h')), 'hello'.replace('l', 'L'), 'hello'.replace('l', 'L', 1), 'aaa'.replace('', '-')
'hello'.find('l'), 'hello'.find('z'), 'hello'.rfind('l'), 'hello'.count('l'), 'héllo'.index('l'), 'a-b'.join(['1', '2'])
'12'.isdigit(), 'a'.isalpha(), 'a1'.isalnum(), ' '.isspace(), ''.isdigit(), 'a\\nb\\r\\nc'.splitlines(), 'pre-x'.removeprefix('pre-'), 'x.py'.removesuffix('.py')
{'a': 1, 'b': 2}.items() | list, {'a': 1}.keys() | list, {'a': 1}.values() | list, {'b': 1} | items | list, nothing | items | list
[3, 1, 2] | sort, [3, 1, 2] | sort(reverse=true), ['b', 'A', 'c'] | sort, ['b', 'A'] | sort(case_sensitive=true), [{'k': 2}, {'k': 1}] | sort(attribute='k')
{'b': 1, 'a': 2} | dictsort, {'b': 1, 'a': 2} | dictsort(by='value'), [1, 1, 2] | unique | list, ['a', 'A'] | unique | list
[1, 2, 3] | first, [1, 2, 3] | last, [] | first is defined, 'abc' | first, [1, 2] | sum, [1, 5, 3] | max, [4, 2] | min, 'abc' | reverse, [1, 2] | reverse | list
[1, 2] | join, [1, 2] | join(', '), 'abc' | join('-'), [{'a': 1}, {'a': 2}] | join('+', attribute='a'), [1, 2] | map('string') | list, [{'a': {'b': 1}}] | map(attribute='a.b') | list
['a', 'b'] | map('upper') | join, [{'a': 1}, {}] | map(attribute='a', default=0) | list, [' x '] | map('trim') | list, ['ab'] | map('replace', 'a', 'c') | list
[1, 0, 2] | select | list, [1, 0, 2] | reject | list, [1, 2, 3] | select('odd') | list, [1, 2, 3] | select('gt', 1) | list, [{'a': 1}, {'a': 2}] | selectattr('a', 'equalto', 2) | list, [{'a': 1}, {'b': 2}] | rejectattr('a', 'defined') | list, [{'a': 1}, {'a': 0}] | selectattr('a') | list
'abc' | length, [1] | count, {} | length, nothing | length, 'h世' | length, ' x ' | trim, 'xax' | trim('x'), 'abc' | capitalize, 'ABC' | lower, 'a b' | title
'x' | default('y'), nothing | default('y'), none | default('y'), none | default('y', true), '' | d('z', boolean=true), nothing | default
'12' | int, 'x' | int, 'x' | int(7), 3.9 | int, '3.9' | int, '2.5' | float, 'x' | float, 3 | float, -3 | abs, true | int
1 | string, [1, 'a'] | string, none | string, 1.5 | string, ('a' | safe) ~ '', 'aXbX' | replace('X', '-'), 'aXbX' | replace('X', '-', 1), 5 | replace('5', '6')
'a\\nb\\n\\nc' | indent, 'a\\nb' | indent(2), 'a\\nb' | indent(2, true), 'a\\n\\nb' | indent(2, blank=true), 'a\\nb' | indent('>>')
{'a': [1, 2.0, none, true, 'é"\\n'], 'b': {}, 'c': []} | tojson, {'a': [1], 'b': {}} | tojson(indent=2), {'b': 1, 'a': 'é'} | tojson(sort_keys=true, ensure_ascii=true), [] | tojson(indent=4), {'a': 1} | tojson(separators=(',', ':')), [{'x': [{}]}] | tojson(indent=1)
'<&>\\'' | tojson, '\\u007f\\u2028😀' | tojson, '😀é\\u007f' | tojson(ensure_ascii=true), 1e22 | tojson, (1, 2) | tojson, {1: 2, none: 3, true: 4, 1.5: 5} | tojson
('{"a": [1, {"b": null}]}' | from_json).a[1].b is none, ('[1.0, "x"]' | from_json)
range(3) | list, range(1, 4) | list, range(5, 0, -2) | list, range(0) | list, dict(a=1, b='c'), dict({'x': 1}, y=2)
[1, 2, 3,], (1, 2,), {'a': 1,}, ((1)), (), [[]]
-1, +1, - 1 | abs, (-1) | abs, -nothing | default(1) if false else 'ok', 2 - -1
{'items': 5}['items'], {'items': 5}.items() | list | length, {'get': 1}.get('get')
'%s' ~ '{{ x }}' ~ "{% y %}" ~ '#}'
1_000 + 1, 0, 00, 1.5e+2, 1E2
namespace(a=1).a, namespace({'b': 2}, c=3).c, namespace().x is defined
""".strip().split("\n")

# Statements where scope and white space matter.
STATEMENTS = [
    "{% set x = 1 %}{% for i in [1, 2] %}{{ x }}{% set x = i %}{{ x }}{% endfor %}{{ x }}",
    "{% set x = 1 %}{% if true %}{% set x = 2 %}{% endif %}{{ x }}",
    "{% set ns = namespace(n=0) %}{% for i in range(5) %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}",
    "{% set a, b = 1, [2, 3] %}{{ a }}{{ b }}{% for (k, v) in [(1, 2)] %}{{ k }}{{ v }}{% endfor %}{% for k, v in {'x': 1}.items() %}{{ k ~ v }}{% endfor %}",
    "{% set l = [] %}{% set _ = l.append(1) %}{{ l.append(2) or '' }}{{ l }}{{ l.pop() }}{{ l.pop(0) }}{{ l }}",
    "{% set d = {'a': 1, 'b': 2} %}{{ d.pop('a') }}{{ d.pop('z', 9) }}{{ d }}{% set _ = d.update({'c': 3}) %}{{ d }}{{ d.setdefault('e', 4) }}",
    "{% for i in [] %}x{% else %}empty{% endfor %}{% for i in [1] %}x{% else %}empty{% endfor %}",
    "{% for c in 'héy' %}[{{ c }}]{% endfor %}{% for k in {'a': 1, 'b': 2} %}{{ k }}{% endfor %}",
    "{% for i in range(3) %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.depth }}{% for j in [1] %}{{ loop.depth0 }}{% endfor %};{% endfor %}",
    "{% for x in [1, 2, 3, 4] if x % 2 == 0 %}{{ loop.index }}:{{ x }}/{{ loop.length }} {% endfor %}",
    "{% macro f(a, b='d', c=none) %}{{ a }}{{ b }}{{ c }}{% endmacro %}{{ f(1) }}|{{ f(1, 2) }}|{{ f(c=3, a=1) }}|{{ f() }}",
    "{% macro f(n) %}{{ n }}{% if n > 0 %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(3) }}",
    "{% set g = 'global' %}{% macro f() %}{{ g }}{{ h }}{% endmacro %}{% set h = 'later' %}{{ f() }}",
    "{% macro f(x) %}{% set y = x %}{{ y }}{% endmacro %}{{ f(1) }}{{ y is defined }}",
    "{% macro outer() %}{% macro inner(x) %}<{{ x }}>{% endmacro %}{{ inner(1) }}{% endmacro %}{{ outer() }}",
    "{% macro f() %}  a\n{% endmacro %}{{ f() | trim }}{{ f() ~ 'b' }}",
    "{% set x %}a{{ 1 }}\n  {% endset %}[{{ x }}]{{ x | length }}",
    "a\n{% if true %}\nb\n{% endif %}\nc\n",
    "a\n  {% if true %}  \n  b\n  {% endif %}  c\n",
    "a  {%- if true -%}  b  {%- endif -%}  c",
    "a\n  {%+ if true %}b{% endif +%}\nc",
    "a {# x #} b\n{# y #}\nc {#- z -#} d\n  {# w #}  e",
    "{{ 'a' }}\n{{- 'b' -}}\n {{ 'c' }} \n",
    "  {{ 'a' }}\n  {% set x = 1 %}\n{{ x }}",
    "x\r\ny\r{% if true %}\r\nz{% endif %}",
    "{% raw %}{{ not }} {% this %}{% endraw %} a\n  {%- raw -%}\n b {% endraw %}\nc",
    "{{ {'a': {'b': 1}}['a']['b'] }}{{ {'x': {}} }}",
    "{%- set m = {'role': 'user', 'parts': [{'type': 'text', 'text': 'hi'}, {'type': 'image'}]} -%}\n{%- for p in m['parts'] -%}{%- if p['type'] == 'text' -%}{{ p['text'] }}{%- elif p.type == 'image' -%}<img>{%- endif -%}{%- endfor -%}",
    "{% if 1 %}a{% elif 2 %}b{% else %}c{% endif %}{% if 0 %}a{% elif 2 %}b{% else %}c{% endif %}{% if 0 %}a{% elif '' %}b{% else %}c{% endif %}",
    "{% for i in range(2) %}\n  - {{ i }}\n{% endfor %}\n\n\nend\n\n",
    "{% set x = none %}{{ x.y is defined }}{{ x.y is none }}{{ 'a'.b is defined }}",
    "{{ nothing }}{{ nothing == nothing2 }}{% if nothing %}x{% endif %}{% for i in nothing %}x{% endfor %}|{{ nothing ~ '' }}",
]

# Templates that must fail, as Jinja fails.
ERRORS = [
    "{{ nothing.x }}", "{{ nothing + 1 }}", "{{ 'a' + 1 }}", "{{ 1 / 0 }}", "{{ [1] | tojson(indent={}) }}", "{{ 1 in 1 }}",
    "{{ none + 'a' }}", "{{ raise_exception('x') }}", "{% for a, b in [1] %}{% endfor %}", "{{ 'a' < 1 }}", "{{ {[]: 1} }}",
    "{{ nothing() }}", "{{ 1() }}", "{{ x | nofilter }}", "{% if %}{% endif %}", "{{ 1 +  }}", "{% for x in %}{% endfor %}",
    "{{ 'abc'.nomethod() }}", "{% endif %}", "{{ (1 }}", "{{ [1, 2 }}", "{% set 1 = 2 %}", "{% if true %}", "{{ 'abc", "{# x",
    "{% macro f(a) %}{% endmacro %}{{ f(1, 2) }}", "{% macro f(a) %}{% endmacro %}{{ f(b=2) }}", "{{ 1 | length }}",
    "{{ 'a'.split('') }}", "{{ [].pop() }}", "{{ {}.pop('a') }}", "{{ nothing | tojson }}", "{% for x in 5 %}{% endfor %}", "{{ -'a' }}",
    "{{ [1, 'a'] | sort }}", "{{ 'a' is nosuchtest }}", "{{ 'x' in 'y' in 'z' ** }}", "{{ nothing < 1 }}", "{{ [1][::0] }}",
]


def render(source, variables):
    return env.from_string(source).render(**json.loads(json.dumps(variables)))


def main():
    cases = []
    for source in TEMPLATES:
        for messages in CONVERSATIONS:
            for tools in (None, [TOOL]):
                variables = {"messages": messages, "tools": tools, "add_generation_prompt": tools is None, "bos_token": "<s>"}
                if tools:
                    variables["enable_thinking"] = False
                cases.append({"template": source, "variables": variables, "want": render(source, variables)})
    for expression in EXPRESSIONS:
        source = "{{ " + expression + " }}"
        cases.append({"template": source, "variables": {}, "want": render(source, {})})
    for source in STATEMENTS:
        cases.append({"template": source, "variables": {}, "want": render(source, {})})
    for source in ERRORS:
        try:
            sys.exit(f"{source} gives {render(source, {})!r}")
        except (jinja2.exceptions.TemplateError, TypeError, ValueError, ZeroDivisionError, KeyError, IndexError):
            cases.append({"template": source, "variables": {}, "want": None})
    json.dump(cases, sys.stdout, indent=1, ensure_ascii=True)
    print()


if __name__ == "__main__":
    main()
