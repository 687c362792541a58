"""The official Python clients of OpenAI and Anthropic against ferry-gateway in front of a scripted coordinator.

    official_clients.py BIN_DIR

Needs the packages openai and anthropic; tests/run.sh makes a virtual environment with them.
"""

import asyncio
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request

import anthropic
import anthropic.types
import openai
import openai.types.chat
import openai.types.responses
import pydantic

WEATHER = {
    "name": "get_weather",
    "description": "The weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
OPENAI_TOOL = {"type": "function", "function": WEATHER}
ANTHROPIC_TOOL = {"name": "get_weather", "description": "The weather", "input_schema": WEATHER["parameters"]}
RESPONSES_TOOL = {"type": "function", **WEATHER}
HELLO = "Hello there, friend."
HI = [{"role": "user", "content": "Say hello."}]


class Report(pydantic.BaseModel):
    city: str
    degrees: int


def chat(client):
    asked = [{"role": "user", "content": "Say hello."}]
    answer = client.chat.completions.create(model="any", messages=asked)
    assert answer.choices[0].message.content == HELLO, answer
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.prompt_tokens > 0 and answer.usage.completion_tokens > 0
    stopped = client.chat.completions.create(model="any", messages=asked, stop="there", n=2)
    assert [choice.message.content for choice in stopped.choices] == ["Hello ", "Hello "], stopped
    cut = client.chat.completions.create(model="any", messages=asked, max_completion_tokens=2)
    assert cut.choices[0].finish_reason == "length"


def chat_stream(client):
    chunks = list(
        client.chat.completions.create(
            model="any",
            messages=[{"role": "user", "content": "Say hello."}],
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == HELLO
    assert chunks[-1].usage.completion_tokens == len(HELLO), chunks[-1]


def chat_tools(client):
    messages = [{"role": "user", "content": "What is the weather in Paris?"}]
    first = client.chat.completions.create(model="any", messages=messages, tools=[OPENAI_TOOL])
    call = first.choices[0].message.tool_calls[0]
    assert first.choices[0].finish_reason == "tool_calls"
    assert call.function.name == "get_weather" and json.loads(call.function.arguments) == {"city": "Paris"}
    messages += [first.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    second = client.chat.completions.create(model="any", messages=messages, tools=[OPENAI_TOOL])
    assert second.choices[0].message.content == HELLO
    with client.chat.completions.stream(model="any", messages=messages[:1], tools=[OPENAI_TOOL]) as stream:
        final = stream.get_final_completion()
    assert json.loads(final.choices[0].message.tool_calls[0].function.arguments) == {"city": "Paris"}


def completions(client):
    assert client.completions.create(model="any", prompt="x", max_tokens=100).choices[0].text == HELLO
    assert client.models.list().data[0].id == "scripted"


def formats(client):
    report = client.chat.completions.parse(model="any", messages=HI, response_format=Report).choices[0].message.parsed
    assert report == Report(city="Paris", degrees=21), report
    assert client.responses.parse(model="any", input="Say hello.", text_format=Report).output_parsed == report
    answer = client.chat.completions.create(model="any", messages=HI, response_format={"type": "json_object"})
    assert json.loads(answer.choices[0].message.content)["city"] == "Paris"
    wrong = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object", "if": {}}}}
    try:
        client.chat.completions.create(model="any", messages=HI, response_format=wrong)
    except openai.BadRequestError as error:
        assert error.param == "response_format.json_schema.schema" and "if" in str(error), error
    else:
        raise AssertionError("a keyword that is not supported was not refused")


def forced_tools(client):
    for choice in "required", {"type": "function", "function": {"name": "get_weather"}}:
        answer = client.chat.completions.create(model="any", messages=HI, tools=[OPENAI_TOOL], tool_choice=choice)
        assert json.loads(answer.choices[0].message.tool_calls[0].function.arguments) == {"city": "Paris"}, answer
    for choice in "required", {"type": "function", "name": "get_weather"}:
        answer = client.responses.create(model="any", input="Say hello.", tools=[RESPONSES_TOOL], tool_choice=choice)
        assert answer.output[0].type == "function_call", answer


def refusals(client):
    for wrong, field in ({"temperature": 200}, "temperature"), ({"tool_choice": "required"}, "tool_choice"):
        try:
            client.chat.completions.create(model="any", messages=[{"role": "user", "content": "x"}], **wrong)
        except openai.BadRequestError as error:
            assert error.param == field, error
        else:
            raise AssertionError(f"{wrong} was not refused")


def responses(client):
    answer = client.responses.create(model="any", input="Say hello.", instructions="Be kind.")
    assert answer.output_text == HELLO and answer.status == "completed", answer
    with client.responses.stream(model="any", input="What is the weather?", tools=[RESPONSES_TOOL]) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds[0] == "response.created" and kinds[-1] == "response.completed", kinds
    call = [item for item in final.output if item.type == "function_call"][0]
    assert json.loads(call.arguments) == {"city": "Paris"}
    history = [{"role": "user", "content": "What is the weather?"}, *[i.to_dict() for i in final.output]]
    history.append({"type": "function_call_output", "call_id": call.call_id, "output": "sunny"})
    assert client.responses.create(model="any", input=history, tools=[RESPONSES_TOOL]).output_text == HELLO


async def cancel(base_url):
    client = openai.AsyncOpenAI(base_url=base_url, api_key="none")
    stream = await client.chat.completions.create(
        model="any", messages=[{"role": "user", "content": "Talk forever."}], stream=True
    )
    seen = 0
    async for _ in stream:
        seen += 1
        if seen == 5:
            break
    await stream.close()
    answers = await asyncio.gather(
        *[client.chat.completions.create(model="any", messages=[{"role": "user", "content": "hi"}]) for _ in range(20)]
    )
    assert all(answer.choices[0].message.content == HELLO for answer in answers)


def messages(client):
    asked = [{"role": "user", "content": "Say hello."}]
    answer = client.messages.create(model="any", max_tokens=100, messages=asked, system="Be kind.")
    assert answer.content[0].text == HELLO and answer.stop_reason == "end_turn", answer
    with client.messages.stream(model="any", max_tokens=100, messages=asked) as stream:
        assert "".join(stream.text_stream) == HELLO
    assert client.messages.count_tokens(model="any", messages=asked).input_tokens > 5
    asked = [{"role": "user", "content": "What is the weather?"}]
    with client.messages.stream(model="any", max_tokens=100, messages=asked, tools=[ANTHROPIC_TOOL]) as stream:
        first = stream.get_final_message()
    use = [block for block in first.content if block.type == "tool_use"][0]
    assert use.input == {"city": "Paris"} and first.stop_reason == "tool_use", first
    asked.append({"role": "assistant", "content": first.content})
    asked.append({"role": "user", "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "sunny"}]})
    second = client.messages.create(model="any", max_tokens=100, messages=asked, tools=[ANTHROPIC_TOOL])
    assert second.content[0].text == HELLO
    for choice in {"type": "any"}, {"type": "tool", "name": "get_weather"}:
        forced = client.messages.create(
            model="any", max_tokens=100, messages=HI, tools=[ANTHROPIC_TOOL], tool_choice=choice
        )
        assert forced.content[0].type == "tool_use" and forced.stop_reason == "tool_use", forced
    try:
        client.messages.create(model="any", max_tokens=0, messages=asked)
    except anthropic.BadRequestError as error:
        assert "max_tokens" in str(error)
    else:
        raise AssertionError("max_tokens 0 was not refused")


def keys(root, key):
    good = openai.OpenAI(base_url=root + "/v1", api_key=key, max_retries=0, timeout=60)
    assert good.chat.completions.create(model="any", messages=HI).choices[0].message.content == HELLO
    good = anthropic.Anthropic(base_url=root, api_key=key, max_retries=0, timeout=60)
    assert good.messages.create(model="any", max_tokens=100, messages=HI).content[0].text == HELLO
    try:
        openai.OpenAI(base_url=root + "/v1", api_key="fk-wrong", max_retries=0).models.list()
    except openai.AuthenticationError as error:
        assert error.type == "authentication_error" and error.request_id, error
    else:
        raise AssertionError("a wrong key was not refused")
    try:
        anthropic.Anthropic(base_url=root, api_key="fk-wrong", max_retries=0).messages.create(
            model="any", max_tokens=100, messages=HI
        )
    except anthropic.AuthenticationError as error:
        assert error.body["error"]["type"] == "authentication_error", error
    else:
        raise AssertionError("a wrong key was not refused")


def answers_are_valid(root):
    """Every answer and event has the fields that the clients' own models want: the clients themselves let missing ones pass."""

    def post(path, body):
        request = urllib.request.Request(root + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        return urllib.request.urlopen(request, timeout=60).read().decode()

    def check(kind, path, body):
        adapter = pydantic.TypeAdapter(kind)
        if not body.get("stream"):
            return adapter.validate_json(post(path, body))
        events = [line[6:] for line in post(path, body).splitlines() if line.startswith("data: ") and line != "data: [DONE]"]
        assert len(events) > 2, events
        for event in events:
            adapter.validate_json(event)

    weather = [{"role": "user", "content": "What is the weather?"}]
    for asked, stream in (HI, True), (weather, True), (HI, False), (weather, False):
        body = {"max_tokens": 100, "messages": asked, "stream": stream}
        check(openai.types.chat.ChatCompletionChunk if stream else openai.types.chat.ChatCompletion, "/v1/chat/completions",
              {**body, "tools": [OPENAI_TOOL], "logprobs": True, "stream_options": {"include_usage": True}})
        check(anthropic.types.RawMessageStreamEvent if stream else anthropic.types.Message, "/v1/messages",
              {**body, "tools": [ANTHROPIC_TOOL]})
        check(openai.types.responses.ResponseStreamEvent if stream else openai.types.responses.Response, "/v1/responses",
              {"input": asked, "stream": stream, "tools": [RESPONSES_TOOL], "reasoning": {"effort": "low"}})


def start_gateway(programs, coordinator, port_file, *more):
    return subprocess.Popen(
        [os.path.join(programs, "ferry-gateway"), "--listen", "127.0.0.1:0", "--coordinator", coordinator,
         "--port-file", port_file, "--log-level", "warn", *more]
    )


def wait_for_line(path):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if os.path.exists(path) and open(path).read().endswith("\n"):
            return open(path).read().strip()
        time.sleep(0.05)
    raise TimeoutError(path)


def main():
    programs = sys.argv[1]
    with tempfile.TemporaryDirectory() as folder:
        coordinator_file, port_file = os.path.join(folder, "coordinator"), os.path.join(folder, "port")
        coordinator = subprocess.Popen([os.path.join(programs, "scripted_coordinator"), coordinator_file], stdin=subprocess.PIPE)
        address = wait_for_line(coordinator_file)
        key_file, keyed_port_file = os.path.join(folder, "keys"), os.path.join(folder, "keyed_port")
        made = subprocess.run(
            [os.path.join(programs, "ferry"), "api-key", "alice", "--file", key_file], capture_output=True, text=True, check=True
        )
        gateway = start_gateway(programs, address, port_file)
        keyed = start_gateway(programs, address, keyed_port_file, "--api-key-file", key_file)
        try:
            root = "http://127.0.0.1:" + wait_for_line(port_file)
            client = openai.OpenAI(base_url=root + "/v1", api_key="none", max_retries=0, timeout=60)
            for test in chat, chat_stream, chat_tools, completions, formats, forced_tools, refusals, responses:
                test(client)
                print("ok: openai", test.__name__)
            asyncio.run(cancel(root + "/v1"))
            print("ok: openai, many at once and one that leaves")
            messages(anthropic.Anthropic(base_url=root, api_key="none", max_retries=0, timeout=60))
            print("ok: anthropic messages")
            models = anthropic.Anthropic(base_url=root, api_key="none", max_retries=0, timeout=60).models.list()
            assert models.data[0].id == models.data[0].display_name == "scripted" and not models.has_more, models
            print("ok: anthropic models")
            answers_are_valid(root)
            print("ok: every answer and event is valid by the clients' models")
            keys("http://127.0.0.1:" + wait_for_line(keyed_port_file), re.search("fk-[-0-9a-f]+", made.stdout).group())
            print("ok: keys")
        finally:
            gateway.terminate()
            keyed.terminate()
            coordinator.stdin.close()
            gateway.wait(timeout=60)
            keyed.wait(timeout=60)
            coordinator.wait(timeout=60)


main()
