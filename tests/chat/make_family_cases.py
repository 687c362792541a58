#!/usr/bin/env python3
"""Renders conversations with the templates of gateway/chat/family_templates.cc by Jinja2, for tests/chat/family_cases_test.cc:

    python3 make_family_cases.py > testdata/family_cases.json

Needs the package jinja2. The environment is that of Hugging Face's apply_chat_template.
"""
import json
import pathlib
import random
import re
import sys

from make_template_cases import env

SOURCE = pathlib.Path(__file__).parents[2] / "gateway/chat/family_templates.cc"
PARTS = dict(re.findall(r'constexpr std::string_view (k\w+) =\s*R"\((.*?)\)";', SOURCE.read_text(), re.DOTALL))


def thinks(thinks, opens):
    return f"{{%- set thinks = {thinks} %}}{{% set opens_thinking = {opens} %}}"


def joined(*names):
    return "".join(PARTS[name] for name in names)


FAMILIES = {
    "Kimi": joined("kKimi"),
    "DeepSeekV3": joined("kDeepSeekV3Calls", "kDeepSeek"),
    "DeepSeekV31": joined("kDeepSeekV31Calls", "kDeepSeek"),
    "Glm": joined("kFindOpenTurn", "kGlm"),
    "Qwen3": thinks("true", "false") + joined("kFindOpenTurn", "kQwenJsonCalls", "kQwenHead", "kQwenMessages"),
    "Qwen3Next": thinks("false", "false") + joined("kFindOpenTurn", "kQwenXmlCalls", "kQwenHead", "kQwenMessages"),
    "Qwen35": thinks("true", "true") + joined("kFindOpenTurn", "kQwenXmlCalls", "kQwenHead", "kQwenMessages"),
}
WORDS = ["ferry", "Zürich", "世界", "<b>", "{}", "\"quoted\"", "back\\slash", "<|im_end|>", "</think>", "'s", "1.5", "né", "🙂", "\t", "\n", "  ", "/nothink"]
NAMES = ["add", "get_weather", "search.web"]


def text(rng, most=6):
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, most)))


def value(rng, depth=0):
    kind = rng.randint(0, 6 if depth < 2 else 4)
    if kind == 5:
        return [value(rng, depth + 1) for _ in range(rng.randint(0, 3))]
    if kind == 6:
        return {text(rng, 1): value(rng, depth + 1) for _ in range(rng.randint(0, 2))}
    return [text(rng), rng.randint(-5, 10**12), rng.choice([0.5, 1e22, -2.25]), rng.choice([True, False]), None][kind]


def conversation(rng):
    tools = []
    for name in rng.sample(NAMES, rng.randint(0, 2)):
        properties = {"a": {"type": "string", "description": text(rng)}, "n": {"type": ["integer", "null"], "enum": [1, None]}}
        tools.append({"type": "function", "function": {"name": name, "description": text(rng),
                                                       "parameters": {"type": "object", "properties": properties, "required": ["a"]}}})
    messages = []
    if rng.random() < 0.6:
        messages.append({"role": "system", "content": text(rng, 8)})
    turns = rng.randint(1, 3)
    for turn in range(turns):
        messages.append({"role": "user", "content": text(rng)})
        for step in range(rng.randint(0, 2) if tools else 0):
            calls = [{"id": f"functions.x:{turn}{step}{k}", "type": "function",
                      "function": {"name": rng.choice(tools)["function"]["name"], "arguments": {"a": text(rng), "v": value(rng)}}}
                     for k in range(rng.randint(1, 2))]
            message = {"role": "assistant", "content": rng.choice([None, "", text(rng)]), "tool_calls": calls}
            if rng.random() < 0.6:
                message["reasoning_content"] = text(rng)
            messages.append(message)
            messages += [{"role": "tool", "tool_call_id": call["id"], "content": text(rng)} for call in calls]
        if turn < turns - 1 or rng.random() < 0.2:
            message = {"role": "assistant", "content": text(rng)}
            if rng.random() < 0.6:
                message["reasoning_content"] = text(rng)
            messages.append(message)
    request = {"messages": messages, "tools": tools, "add_generation_prompt": rng.random() < 0.8}
    if rng.random() < 0.4:
        request["template_kwargs"] = {rng.choice(["enable_thinking", "thinking"]): rng.random() < 0.5}
    return request


def main():
    rng = random.Random(7)
    families = []
    for name, source in FAMILIES.items():
        template = env.from_string(source)
        cases = []
        for _ in range(30):
            request = conversation(rng)
            want = template.render(messages=request["messages"], tools=request["tools"] or None, documents=None, bos_token="<s>",
                                   eos_token="</s>", add_generation_prompt=request["add_generation_prompt"],
                                   **request.get("template_kwargs", {}))
            cases.append({"request": request, "want": want})
        families.append({"family": name, "template": source, "cases": cases})
    json.dump(families, sys.stdout, ensure_ascii=False, indent=0)
    print()


if __name__ == "__main__":
    main()
