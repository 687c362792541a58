#!/usr/bin/env python3
"""Answers in the form of a JSON schema at temperature 1.5, judged by PyPI's jsonschema.

    tests/gateway/schemas_judged.py BIN_DIR MODEL [COUNT]      100 schemas unless said otherwise

Half of the answers are contents (response_format), half are llama.cpp's field json_schema. The schemas are random ones over the
keywords that Ferry supports, and tools as agents declare them. All texts of each schema are bounded, so every answer must come to
its end, parse, and validate.
"""

import collections
import concurrent.futures
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

import jsonschema

MAX_TOKENS = 3000
PATTERNS = [r"^[a-z]{1,5}$", r"^\d{3}-\d{4}$", r"^(foo|bar){1,3}$", r"^[A-Z][a-z]{0,8}( [A-Z][a-z]{0,8})?$", r"^#[0-9a-f]{6}$"]
FORMATS = ["date", "time", "date-time", "uuid", "ipv4", "ipv6"]
NAMES = ["name", "id", "größe", "a b", 'x"y', "items", "value", "nam"]


def text(description, most=30, **more):
    return {"type": "string", "description": description, "maxLength": most, **more}


def tool(properties, required=None):
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties) if required is None else required,
        "additionalProperties": False,
    }


def listed(items, most):
    return {"type": "array", "items": items, "maxItems": most}


# As agents and OpenAI's documentation declare their tools.
TOOLS = [
    tool({"location": text("city and country"), "units": {"type": "string", "enum": ["celsius", "fahrenheit"]}}),
    tool({"query": text("what to search"), "max_results": {"type": "integer", "minimum": 1, "maximum": 20}}, ["query"]),
    tool({"file_path": text("absolute path", 60, pattern="^/[a-z/]{1,40}$"), "offset": {"type": ["integer", "null"], "minimum": 0,
          "maximum": 100000}, "limit": {"type": ["integer", "null"], "minimum": 1, "maximum": 2000}}),  # fmt: skip
    tool({"file_path": text("path"), "edits": listed(tool({"old_string": text("old"), "new_string": text("new"), "replace_all":
          {"type": "boolean", "default": False}}, ["old_string", "new_string"]), 3)}),  # fmt: skip
    tool({"command": listed(text("word", 12), 4), "workdir": text("folder"), "timeout_ms": {"type": "number", "minimum": 0,
          "maximum": 600000}}, ["command"]),  # fmt: skip
    tool({"plan": listed(tool({"step": text("step"), "status": {"type": "string", "enum": ["pending", "in_progress",
          "completed"]}}), 4), "explanation": {"anyOf": [text("why"), {"type": "null"}]}}),  # fmt: skip
    tool({"title": text("title"), "start": {"type": "string", "format": "date-time"}, "attendees": listed({"type": "string",
          "format": "uuid"}, 3), "reminder": {"$ref": "#/$defs/reminder"}})
    | {"$defs": {"reminder": tool({"minutes": {"type": "integer", "minimum": 0, "maximum": 1440}})}},  # fmt: skip
    tool({"steps": listed(tool({"explanation": text("why"), "output": text("what")}), 4), "final_answer": text("answer")}),
    tool({"x": {"type": "integer", "minimum": 0, "maximum": 1919}, "y": {"type": "integer", "minimum": 0, "maximum": 1079},
          "button": {"enum": ["left", "right", "wheel"]}, "modifiers": listed({"enum": ["ctrl", "shift"]}, 2)}),  # fmt: skip
    tool({"table": {"enum": ["orders", "customers"]}, "conditions": listed(tool({"column": text("column", 10), "operator":
          {"enum": ["=", ">", "<", "!="]}, "value": {"anyOf": [text("value", 10), {"type": "number", "minimum": -1000,
          "maximum": 1000}, tool({"column_name": text("column", 10)})]}}), 3), "order_by": {"enum": ["asc", "desc"]}}),  # fmt: skip
]


class Schemas:
    """Random schemas, all of whose texts are bounded."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def make(self):
        schema = self.object(0)
        schema["$defs"] = {
            "leaf": self.scalar(),
            "chain": tool({"value": self.scalar(), "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/leaf"}]}}, ["value"]),
        }
        return schema

    def value(self, depth):
        kind = self.random.randrange(3 if depth > 2 else 8)
        if kind <= 1:
            return self.scalar()
        if kind == 2:
            return {"$ref": self.random.choice(["#/$defs/leaf", "#/$defs/chain"])}
        if kind <= 4:
            return self.object(depth)
        if kind == 5:
            return self.array(depth)
        if kind == 6:
            return {"anyOf": [self.value(depth + 1), self.value(depth + 1)], "description": "either"}
        return {"allOf": [self.object(depth + 1), {"title": "merged"}]}

    def scalar(self):
        kind = self.random.randrange(8)
        low = self.random.randrange(-2000, 2000)
        if kind == 0:
            return {"type": "integer", self.random.choice(["minimum", "exclusiveMinimum"]): low, "maximum": low + 2000}
        if kind == 1:
            return {"type": "number", "minimum": low / 8, self.random.choice(["maximum", "exclusiveMaximum"]): low / 8 + 3.5}
        if kind == 2:
            return {"type": "boolean"}
        if kind == 3:
            return {"enum": ["red", 'gr"een', 3, None, {"a": [1, "é"]}]}
        if kind == 4:
            return {"const": "fixed"}
        if kind == 5:
            return {"type": "string", "pattern": self.random.choice(PATTERNS)}
        if kind == 6:
            return {"type": "string", "format": self.random.choice(FORMATS)}
        least = self.random.randrange(6)
        return {"type": self.random.choice(["string", ["string", "null"]]), "minLength": least,
                "maxLength": least + self.random.randrange(20)}  # fmt: skip

    def array(self, depth):
        if self.random.randrange(3) == 0:
            return {"type": "array", "prefixItems": [self.scalar(), self.value(depth + 1)], "items": False}
        least = self.random.randrange(3)
        return {"type": "array", "items": self.value(depth + 1), "minItems": least, "maxItems": least + self.random.randrange(3)}

    def object(self, depth):
        names = self.random.sample(NAMES, self.random.randrange(1, 5))
        properties = {name: self.value(depth + 1) for name in names}
        return tool(properties, [name for name in names if self.random.randrange(2)])


def ask(port, number, schema):
    """The text of an answer and why it ended."""
    body = {"prompt": "{", "max_tokens": MAX_TOKENS, "seed": number, "temperature": 1.5, "top_k": 0, "top_p": 1, "min_p": 0}
    if number % 2:
        body["json_schema"] = schema
    else:
        body["response_format"] = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=600) as response:
            (choice,) = json.load(response)["choices"]
    except urllib.error.HTTPError as error:
        return error.read().decode(), f"HTTP {error.code}"
    return choice["text"], choice["finish_reason"]


def judge(port, number):
    """How it went, and what is wrong; None: nothing."""
    schema = TOOLS[number % len(TOOLS)] if number % 4 == 0 else Schemas(number).make()
    answer, end = ask(port, number, schema)
    if end != "stop":
        return end, f"{end}: {answer[:300]!r} by {json.dumps(schema)}"
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    try:
        jsonschema.Draft202012Validator(schema, format_checker=checker).validate(json.loads(answer))
    except (json.JSONDecodeError, jsonschema.ValidationError) as error:
        return "rejected", f"rejected: {answer[:300]!r} by {json.dumps(schema)}: {str(error).splitlines()[0]}"
    return "valid", None


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until_served(port, process, log):
    end = time.monotonic() + 120
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=10):
                return
        except OSError:
            if process.poll() is not None or time.monotonic() > end:
                log.seek(0)
                sys.exit("ferry serve does not serve: " + log.read())
            time.sleep(0.2)


def main():
    binaries, model = sys.argv[1:3]
    count = int(sys.argv[3]) if len(sys.argv) > 3 else 100
    with tempfile.TemporaryDirectory() as folder:
        log = open(os.path.join(folder, "log"), "w+", encoding="utf-8")
        port = free_port()
        command = [os.path.join(binaries, "ferry"), "serve", "-m", model, "--backend", "cpu", "-np", "8", "-c", "4096"]
        command += ["--port", "0", "--http-port", str(port)]
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            wait_until_served(port, process, log)
            began = time.monotonic()
            with concurrent.futures.ThreadPoolExecutor(8) as pool:
                results = list(pool.map(lambda number: judge(port, number), range(count)))
        finally:
            process.terminate()
            process.wait(60)
    for _, wrong in results:
        if wrong:
            print(wrong)
    counts = collections.Counter(kind for kind, _ in results)
    print(f"{count} schemas at temperature 1.5: {dict(counts)} in {time.monotonic() - began:.0f} s")
    return 0 if counts["valid"] == count else 1


if __name__ == "__main__":
    sys.exit(main())
