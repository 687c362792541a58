#!/usr/bin/env python3
"""Conversations and outputs by openai-harmony, for tests/chat/harmony_cases_test.cc:

  TIKTOKEN_RS_CACHE_DIR=FOLDER python3 make_harmony_cases.py > testdata/harmony_cases.json

Needs the package openai-harmony, and in FOLDER the ranks of o200k_base (file fb374d419588a4632f3f557e76b4b70aebbca790).
"""
import json
import random
import sys

import openai_harmony as oh

DATE = "2025-03-14"
WORDS = ["weather", "Zürich", "42", "what is", "the answer", "世界", "a\nb", "{\"k\": [1]}", "  two  ", "end.", "😀", "it's", "\"q\"", "// c"]
NAMES = ["get_weather", "add", "search_web", "f1", "do-it"]
encoding = oh.load_harmony_encoding(oh.HarmonyEncodingName.HARMONY_GPT_OSS)


def text(rng, most=4):
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, most)))


def schema(rng, depth=0):
    kind = rng.choice(["string", "integer", "number", "boolean", "array", "object", "list", "oneOf", "any", "enum"] if depth < 3 else ["string", "integer"])
    made = {}
    if kind == "list":
        made["type"] = rng.sample(["string", "integer", "null"], 2)
    elif kind == "oneOf":
        made["oneOf"] = [schema(rng, depth + 1) for _ in range(rng.randint(1, 3))]
    elif kind == "enum":
        made = {"type": "string", "enum": rng.sample(WORDS[:4], 2)}
    elif kind == "any":
        made = rng.choice([{}, {"anyOf": [{"type": "string"}]}, {"$ref": "#/x"}, {"type": "null"}])
    else:
        made["type"] = kind
    if kind == "array" and rng.random() < 0.8:
        made["items"] = schema(rng, depth + 1)
    if kind == "object":
        made.update(properties_of(rng, depth))
    for name, value in (("description", text(rng)), ("title", "Title"), ("nullable", True), ("examples", ["x", 1, "y"]),
                        ("default", rng.choice(["weather", 3, 1.5, True, None, [1, 2], {"a": "b"}]))):
        if rng.random() < 0.25:
            made[name] = value
    return made


def properties_of(rng, depth=0):
    properties = {name: schema(rng, depth + 1) for name in rng.sample(["city", "days", "unit", "x-y", "größe"], rng.randint(0, 4))}
    made = {"properties": properties}
    if properties and rng.random() < 0.7:
        made["required"] = rng.sample(sorted(properties), rng.randint(0, len(properties)))
    return made


def tools(rng):
    made = []
    for name in rng.sample(NAMES, rng.randint(1, 3)):
        function = {"name": name, "description": rng.choice([text(rng), "one\ntwo", ""])}
        if rng.random() < 0.85:
            function["parameters"] = {"type": "object", **properties_of(rng)}
        made.append({"type": "function", "function": function})
    return made


def conversation(rng):
    """A request as chat completions have it."""
    messages = []
    if rng.random() < 0.6:
        messages.append({"role": rng.choice(["system", "developer"]), "content": text(rng, 8)})
    request = {"messages": messages, "tools": tools(rng) if rng.random() < 0.6 else []}
    if rng.random() < 0.5:
        request["reasoning_effort"] = rng.choice(["low", "medium", "high"])
    turns = rng.randint(1, 3)
    for turn in range(turns):
        messages.append({"role": "user", "content": text(rng, 6)})
        last = turn == turns - 1
        for step in range(rng.randint(0, 2) if request["tools"] else 0):
            calls = []
            for k in range(rng.randint(1, 2)):
                name = rng.choice(request["tools"])["function"]["name"]
                calls.append({"id": f"call_{turn}_{step}_{k}", "type": "function",
                              "function": {"name": name, "arguments": json.dumps({"a": text(rng), "n": [1, None]}, ensure_ascii=False)}})
            message = {"role": "assistant", "content": rng.choice([None, "", text(rng)]), "tool_calls": calls}
            if rng.random() < 0.7:
                message["reasoning_content"] = text(rng)
            messages.append(message)
            for call in calls:
                messages.append({"role": "tool", "tool_call_id": call["id"], "content": text(rng)})
        if not last:
            message = {"role": "assistant", "content": text(rng, 6)}
            if rng.random() < 0.7:
                message["reasoning_content"] = text(rng)
            messages.append(message)
    return request


def render(request):
    system = oh.SystemContent.new().with_conversation_start_date(DATE)
    if "reasoning_effort" in request:
        system = system.with_reasoning_effort(oh.ReasoningEffort(request["reasoning_effort"].capitalize()))
    messages = [oh.Message.from_role_and_content(oh.Role.SYSTEM, system)]
    developer = oh.DeveloperContent.new()
    rest = list(request["messages"])
    instructions = rest.pop(0)["content"] if rest[0]["role"] in ("system", "developer") else None
    if instructions is not None:
        developer = developer.with_instructions(instructions)
    if request["tools"]:
        developer = developer.with_function_tools([
            oh.ToolDescription.new(t["function"]["name"], t["function"]["description"], parameters=t["function"].get("parameters"))
            for t in request["tools"]])
    if instructions is not None or request["tools"]:
        messages.append(oh.Message.from_role_and_content(oh.Role.DEVELOPER, developer))
    # The library drops the reasoning before the first final answer alone, and only where the last answer is final. What the format's
    # description asks for, no reasoning before the last final answer, is done here; what lies behind it stays.
    finals = [i for i, m in enumerate(rest) if m["role"] == "assistant" and not m.get("tool_calls")]
    names = {}
    for i, m in enumerate(rest):
        if m["role"] == "user":
            messages.append(oh.Message.from_role_and_content(oh.Role.USER, m["content"]))
        elif m["role"] == "tool":
            author = oh.Author.new(oh.Role.TOOL, "functions." + names[m["tool_call_id"]])
            messages.append(oh.Message.from_author_and_content(author, m["content"]).with_channel("commentary").with_recipient("assistant"))
        else:
            if m.get("reasoning_content") and not (finals and i <= finals[-1]):
                messages.append(oh.Message.from_role_and_content(oh.Role.ASSISTANT, m["reasoning_content"]).with_channel("analysis"))
            if not m.get("tool_calls"):
                messages.append(oh.Message.from_role_and_content(oh.Role.ASSISTANT, m["content"]).with_channel("final"))
                continue
            if m["content"]:
                messages.append(oh.Message.from_role_and_content(oh.Role.ASSISTANT, m["content"]).with_channel("commentary"))
            for call in m["tool_calls"]:
                names[call["id"]] = call["function"]["name"]
                messages.append(oh.Message.from_role_and_content(oh.Role.ASSISTANT, call["function"]["arguments"])
                                .with_channel("commentary").with_recipient("functions." + call["function"]["name"])
                                .with_content_type("<|constrain|>json"))
    config = oh.RenderConversationConfig(auto_drop_analysis=False)
    tokens = encoding.render_conversation_for_completion(oh.Conversation.from_messages(messages), oh.Role.ASSISTANT, config=config)
    return encoding.decode_utf8(tokens)


def output(rng):
    """What a model may write behind "<|start|>assistant"."""
    parts = []
    for _ in range(rng.randint(0, 2)):
        parts.append("<|channel|>analysis<|message|>" + text(rng, 8) + "<|end|>")
    if rng.random() < 0.3:
        parts.append("<|channel|>commentary<|message|>" + text(rng) + "<|end|>")
    if rng.random() < 0.5:
        name, arguments = rng.choice(NAMES), json.dumps({"a": text(rng)}, ensure_ascii=False)
        kind = rng.choice([" <|constrain|>json", "<|constrain|>json", " json", ""])
        header = rng.choice([f" to=functions.{name}<|channel|>commentary{kind}", f"<|channel|>commentary to=functions.{name}{kind}",
                             f" to=functions.{name}<|channel|>analysis{kind}"])
        parts.append(header + "<|message|>" + arguments + "<|call|>")
    else:
        parts.append("<|channel|>final<|message|>" + text(rng, 8) + rng.choice(["<|return|>", "<|end|>", ""]))
    return "<|start|>assistant".join(parts)


def parse(written):
    tokens = encoding.encode(written, allowed_special="all")
    told = []
    for message in encoding.parse_messages_from_completion_tokens(tokens, oh.Role.ASSISTANT):
        told.append({"channel": message.channel, "recipient": message.recipient, "text": message.content[0].text})
    return told


def main():
    rng = random.Random(13)
    conversations = []
    for _ in range(240):
        request = conversation(rng)
        conversations.append({"request": request, "want": render(request)})
    outputs = []
    for _ in range(300):
        written = output(rng)
        outputs.append({"output": written, "want": parse(written)})
    json.dump({"date": DATE, "conversations": conversations, "outputs": outputs}, sys.stdout, ensure_ascii=False, indent=0)
    print()


if __name__ == "__main__":
    main()
