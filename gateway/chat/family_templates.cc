#include "gateway/chat/family_templates.h"

namespace ferry {
namespace {

// Where the answers of the open turn begin: behind the last message of a user. Their reasoning is kept.
constexpr std::string_view kFindOpenTurn = R"({%- set turn = namespace(begin=0) %}
{%- for message in messages %}
{%- if message.role == 'user' %}{% set turn.begin = loop.index %}{% endif %}
{%- endfor %}
)";

constexpr std::string_view kQwenHead = R"({%- set first_system = messages[0].content if messages[0].role == 'system' else '' %}
{%- if tools or first_system %}
{{- '<|im_start|>system\n' ~ first_system }}
{%- if tools %}
{{- '\n\n' if first_system }}
{{- '# Tools\n\nThese functions can be called, each described by JSON:\n<tools>' }}
{%- for tool in tools %}{{ '\n' ~ (tool | tojson) }}{% endfor %}
{{- '\n</tools>\n\n' ~ call_help }}
{%- endif %}
{{- '<|im_end|>\n' }}
{%- endif %}
)";

// All messages but a first one of the system; `write_call` is a macro.
constexpr std::string_view kQwenMessages = R"({%- for message in messages %}
{%- set content = message.content or '' %}
{%- if message.role == 'assistant' %}
{{- '<|im_start|>assistant\n' }}
{%- if message.reasoning_content and loop.index0 >= turn.begin %}
{{- '<think>\n' ~ (message.reasoning_content | trim) ~ '\n</think>\n\n' }}
{%- endif %}
{{- content }}
{%- for call in message.tool_calls or [] %}
{{- '\n' if content or not loop.first }}
{{- write_call(call.function) }}
{%- endfor %}
{{- '<|im_end|>\n' }}
{%- elif message.role == 'tool' %}
{{- '<|im_start|>user' if loop.first or loop.previtem.role != 'tool' }}
{{- '\n<tool_response>\n' ~ content ~ '\n</tool_response>' }}
{{- '<|im_end|>\n' if loop.last or loop.nextitem.role != 'tool' }}
{%- elif not (loop.first and message.role == 'system') %}
{{- '<|im_start|>' ~ message.role ~ '\n' ~ content ~ '<|im_end|>\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\n' }}
{%- if enable_thinking is defined and not enable_thinking and thinks %}
{{- '<think>\n\n</think>\n\n' }}
{%- elif opens_thinking %}
{{- '<think>\n' }}
{%- endif %}
{%- endif %}
)";

constexpr std::string_view kQwenJsonCalls =
    R"({%- set call_help = 'A call is a JSON object with the name of the function and its arguments, between tags:\n<tool_call>\n{"name": NAME, "arguments": OBJECT}\n</tool_call>' %}
{%- macro write_call(function) -%}
<tool_call>{{ '\n{"name": "' ~ function.name ~ '", "arguments": ' }}
{{- function.arguments if function.arguments is string else function.arguments | tojson }}
{{- '}\n</tool_call>' }}
{%- endmacro -%}
)";

constexpr std::string_view kQwenXmlCalls =
    R"({%- set call_help = 'A call names the function and gives each argument between tags:\n<tool_call>\n<function=NAME>\n<parameter=ARGUMENT>\nVALUE\n</parameter>\n</function>\n</tool_call>' %}
{%- macro write_call(function) -%}
<tool_call>{{ '\n<function=' ~ function.name ~ '>\n' }}
{%- for name, value in function.arguments | items %}
{{- '<parameter=' ~ name ~ '>\n' ~ (value if value is string else value | tojson) ~ '\n</parameter>\n' }}
{%- endfor %}
{{- '</function>\n</tool_call>' }}
{%- endmacro -%}
)";

constexpr std::string_view kGlm = R"({{- '[gMASK]<sop>' }}
{%- set no_thinking = enable_thinking is defined and not enable_thinking %}
{%- if tools %}
{{- '<|system|>\n# Tools\n\nThese functions can be called, each described by JSON:\n<tools>' }}
{%- for tool in tools %}{{ '\n' ~ (tool | tojson) }}{% endfor %}
{{- '\n</tools>\n\nA call names the function and gives each argument between tags:\n<tool_call>NAME\n<arg_key>ARGUMENT</arg_key>\n<arg_value>VALUE</arg_value>\n</tool_call>' }}
{%- endif %}
{%- for message in messages %}
{%- set content = message.content or '' %}
{%- if message.role == 'assistant' %}
{{- '<|assistant|>\n<think>' }}
{{- message.reasoning_content | trim if message.reasoning_content and loop.index0 >= turn.begin }}
{{- '</think>' }}
{{- '\n' ~ (content | trim) if content | trim }}
{%- for call in message.tool_calls or [] %}
{{- '\n<tool_call>' ~ call.function.name }}
{%- for name, value in call.function.arguments | items %}
{{- '\n<arg_key>' ~ name ~ '</arg_key>\n<arg_value>' ~ (value if value is string else value | tojson) ~ '</arg_value>' }}
{%- endfor %}
{{- '\n</tool_call>' }}
{%- endfor %}
{%- elif message.role == 'tool' %}
{{- '<|observation|>' if loop.first or loop.previtem.role != 'tool' }}
{{- '\n<tool_response>\n' ~ content ~ '\n</tool_response>' }}
{%- else %}
{{- '<|' ~ ('user' if message.role == 'user' else 'system') ~ '|>\n' ~ content }}
{{- '/nothink' if message.role == 'user' and no_thinking and not content.endswith('/nothink') }}
{%- endif %}
{%- endfor %}
{{- '<|assistant|>' ~ ('\n<think></think>' if no_thinking else '') if add_generation_prompt }}
)";

// `newer`: V3.1, which writes calls without a fence, and closes or opens the reasoning behind <｜Assistant｜>.
constexpr std::string_view kDeepSeek =
    R"({%- set opened = '<think>' if newer and thinking is defined and thinking else '</think>' if newer else '' %}
{{- bos_token }}
{%- set gap = namespace(text='') %}
{%- for message in messages if message.role == 'system' %}
{{- gap.text ~ message.content }}{% set gap.text = '\n\n' %}
{%- endfor %}
{%- if tools %}
{{- gap.text ~ '## Tools\n\nThese functions can be called, each described by JSON:\n' }}
{%- for tool in tools %}{{ '\n' ~ (tool.function | tojson) }}{% endfor %}
{{- '\n\nA call is written so: ' ~ (write_call({'name': 'NAME', 'arguments': 'OBJECT'})) }}
{%- endif %}
{%- for message in messages if message.role != 'system' %}
{%- set content = message.content or '' %}
{%- set behind_tool = not loop.first and loop.previtem.role == 'tool' %}
{%- if message.role == 'assistant' %}
{{- '<｜Assistant｜>' ~ ('</think>' if newer else '') if not behind_tool }}
{{- content }}
{%- if message.tool_calls %}
{{- '<｜tool▁calls▁begin｜>' }}
{%- for call in message.tool_calls %}
{{- '\n' if not loop.first and not newer }}
{{- write_call(call.function) }}
{%- endfor %}
{{- '<｜tool▁calls▁end｜>' }}
{%- endif %}
{{- eos_token }}
{%- elif message.role == 'tool' %}
{{- '<｜tool▁outputs▁begin｜>' if not newer and not behind_tool }}
{{- '<｜tool▁output▁begin｜>' ~ content ~ '<｜tool▁output▁end｜>' }}
{{- '<｜tool▁outputs▁end｜>' if not newer and (loop.last or loop.nextitem.role != 'tool') }}
{%- else %}
{{- '<｜User｜>' ~ content }}
{%- endif %}
{%- endfor %}
{{- '<｜Assistant｜>' ~ opened if add_generation_prompt and messages[-1].role != 'tool' }}
)";

constexpr std::string_view kDeepSeekV3Calls = R"({%- set newer = false %}
{%- macro write_call(function) -%}
<｜tool▁call▁begin｜>function<｜tool▁sep｜>{{ function.name ~ '\n```json\n' }}
{{- function.arguments if function.arguments is string else function.arguments | tojson }}
{{- '\n```<｜tool▁call▁end｜>' }}
{%- endmacro -%}
)";

constexpr std::string_view kDeepSeekV31Calls = R"({%- set newer = true %}
{%- macro write_call(function) -%}
<｜tool▁call▁begin｜>{{ function.name }}<｜tool▁sep｜>
{{- function.arguments if function.arguments is string else function.arguments | tojson }}
{{- '<｜tool▁call▁end｜>' }}
{%- endmacro -%}
)";

constexpr std::string_view kKimi = R"({%- if tools %}
{{- '<|im_system|>tool_declare<|im_middle|>' ~ (tools | tojson(separators=(',', ':'))) ~ '<|im_end|>' }}
{%- endif %}
{%- for message in messages %}
{%- set content = message.content or '' %}
{%- if message.role == 'assistant' %}
{{- '<|im_assistant|>assistant<|im_middle|>' ~ content }}
{%- if message.tool_calls %}
{{- '<|tool_calls_section_begin|>' }}
{%- for call in message.tool_calls %}
{{- '<|tool_call_begin|>' ~ (call.id or 'functions.' ~ call.function.name ~ ':' ~ loop.index0) ~ '<|tool_call_argument_begin|>' }}
{{- call.function.arguments if call.function.arguments is string else call.function.arguments | tojson }}
{{- '<|tool_call_end|>' }}
{%- endfor %}
{{- '<|tool_calls_section_end|>' }}
{%- endif %}
{%- elif message.role == 'tool' %}
{{- '<|im_system|>tool<|im_middle|>## Return of ' ~ message.tool_call_id ~ '\n' ~ content }}
{%- elif message.role == 'user' %}
{{- '<|im_user|>user<|im_middle|>' ~ content }}
{%- else %}
{{- '<|im_system|>system<|im_middle|>' ~ content }}
{%- endif %}
{{- '<|im_end|>' }}
{%- endfor %}
{{- '<|im_assistant|>assistant<|im_middle|>' if add_generation_prompt }}
)";

std::string Joined(std::initializer_list<std::string_view> parts) {
  std::string text;
  for (const std::string_view part : parts) text += part;
  return text;
}

}  // namespace

std::optional<std::string> FamilyTemplate(std::string_view architecture, const SpecialTokens& special_tokens) {
  const auto has = [&](std::string_view token) { return special_tokens.Find(token).has_value(); };
  if (has("<|im_middle|>")) return std::string(kKimi);
  if (has("<｜tool▁calls▁begin｜>")) {
    return Joined({has("<｜search▁begin｜>") ? kDeepSeekV31Calls : kDeepSeekV3Calls, kDeepSeek});
  }
  if (has("[gMASK]")) return Joined({kFindOpenTurn, kGlm});
  if (!has("<|im_start|>") || !has("<tool_call>")) return std::nullopt;
  if (architecture == "qwen35moe") {
    return Joined(
        {"{%- set thinks = true %}{% set opens_thinking = true %}", kFindOpenTurn, kQwenXmlCalls, kQwenHead, kQwenMessages});
  }
  if (architecture == "qwen3next") {
    return Joined(
        {"{%- set thinks = false %}{% set opens_thinking = false %}", kFindOpenTurn, kQwenXmlCalls, kQwenHead, kQwenMessages});
  }
  return Joined(
      {"{%- set thinks = true %}{% set opens_thinking = false %}", kFindOpenTurn, kQwenJsonCalls, kQwenHead, kQwenMessages});
}

}  // namespace ferry
