"""The gateway SMG (PyPI `smg`) in front of `ferry serve` with the bundled model: vllm.grpc.engine.VllmEngine as another program
calls it.

    smg_in_front.py BIN_DIR MODEL      ends with 77 where the package is missing

SMG does without the network here: it finds the vocabulary in a folder of the model's name below its own, which this test writes.
"""

import concurrent.futures
import importlib.util
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

NAME = "demo-moe-30m"
CONTROL = 3  # a token's type in GGUF: never part of a text


def read_metadata(path):
    """The metadata of a GGUF file."""
    with open(path, "rb") as file:

        def number(form):
            return struct.unpack("<" + form, file.read(struct.calcsize(form)))[0]

        def text():
            return file.read(number("Q")).decode("utf-8", "surrogateescape")

        forms = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

        def value(kind):
            if kind == 8:
                return text()
            if kind == 9:
                element = number("I")
                return [value(element) for _ in range(number("Q"))]
            return number(forms[kind])

        assert file.read(4) == b"GGUF"
        file.read(4 + 8)
        entries = {}
        for _ in range(number("Q")):
            key = text()
            entries[key] = value(number("I"))
        return entries


def write_tokenizer(model, folder):
    """The vocabulary as Hugging Face's tokenizers read it."""
    data = read_metadata(model)
    tokens, kinds = data["tokenizer.ggml.tokens"], data["tokenizer.ggml.token_type"]
    special = [i for i, kind in enumerate(kinds) if kind == CONTROL]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    tokenizer = {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None,
        "added_tokens": [
            {"id": i, "content": tokens[i], "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
            for i in special
        ],
        "pre_tokenizer": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
            "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": data["tokenizer.ggml.merges"],
        },
    }
    with open(os.path.join(folder, "tokenizer.json"), "w") as file:
        json.dump(tokenizer, file)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": tokens[data["tokenizer.ggml.eos_token_id"]],
        "chat_template": "{% for message in messages %}{{ message.content }}{% endfor %}",
    }
    with open(os.path.join(folder, "tokenizer_config.json"), "w") as file:
        json.dump(config, file)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ask(url, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return answer.read().decode()


def await_answer(url, seconds, process):
    end = time.monotonic() + seconds
    while True:
        try:
            return ask(url)
        except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
            assert process.poll() is None, f"the process before {url} ended with {process.returncode}"
            assert time.monotonic() < end, f"{url} did not answer well in {seconds} s: {error}"
            time.sleep(0.3)


PROMPT = "Once upon a time there was a"


def completion(**fields):
    return {"model": NAME, "prompt": PROMPT, "max_tokens": 16, "temperature": 0, **fields}


def texts_are_ferrys_own(ferry, smg):
    # SMG puts no bos before the text.
    ids = json.loads(ask(f"{ferry}/tokenize", {"content": PROMPT, "add_special": False}))["tokens"]
    own = json.loads(ask(f"{ferry}/v1/completions", completion(prompt=ids)))
    through = json.loads(ask(f"{smg}/v1/completions", completion()))
    assert through["choices"][0]["text"] == own["choices"][0]["text"], (through, own)
    assert through["choices"][0]["finish_reason"] == own["choices"][0]["finish_reason"], through
    for count in ("prompt_tokens", "completion_tokens"):
        assert through["usage"][count] == own["usage"][count], (through, own)
    return own["choices"][0]["text"]


def streams_say_the_same(smg, whole):
    lines = ask(f"{smg}/v1/completions", completion(stream=True)).split("\n\n")
    chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert len(chunks) > 4 and "".join(c["choices"][0]["text"] for c in chunks if c["choices"]) == whole, chunks
    assert lines[-2] == "data: [DONE]" or "data: [DONE]" in lines, lines[-3:]


def a_stop_string_ends_it(smg, whole):
    word = re.findall(r"[a-z]{4,}", whole)[1]
    choice = json.loads(ask(f"{smg}/v1/completions", completion(stop=[word])))["choices"][0]
    assert choice["finish_reason"] == "stop" and choice["text"] == whole[: whole.index(word)], (choice, whole)


def conversations_work(smg):
    body = {"model": NAME, "messages": [{"role": "user", "content": "Once upon a time"}], "max_tokens": 8, "temperature": 0}
    answer = json.loads(ask(f"{smg}/v1/chat/completions", body))
    assert answer["choices"][0]["message"]["content"], answer
    assert 0 < answer["usage"]["completion_tokens"] <= 8, answer


def a_schema_is_kept(smg):
    schema = {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"], "additionalProperties": False}
    body = {
        "model": NAME, "messages": [{"role": "user", "content": "Answer."}], "max_tokens": 64, "temperature": 1,
        "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}},
    }
    answer = json.loads(ask(f"{smg}/v1/chat/completions", body))["choices"][0]["message"]["content"]
    assert isinstance(json.loads(answer)["yes"], bool), answer


def many_at_once_agree(smg, whole):
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: json.loads(ask(f"{smg}/v1/completions", completion())), range(16)))
    assert {answer["choices"][0]["text"] for answer in answers} == {whole}, answers


def check(ferry, smg):
    whole = texts_are_ferrys_own(ferry, smg)
    streams_say_the_same(smg, whole)
    a_stop_string_ends_it(smg, whole)
    conversations_work(smg)
    a_schema_is_kept(smg)
    many_at_once_agree(smg, whole)


def end(process):
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()


def main():
    binaries, model = sys.argv[1:3]
    if importlib.util.find_spec("smg") is None:
        print("skipped: the package smg is not installed")
        return 77
    grpc, http, door, metrics = (free_port() for _ in range(4))
    with tempfile.TemporaryDirectory() as folder:
        vocabulary = os.path.join(folder, NAME)
        os.mkdir(vocabulary)
        write_tokenizer(model, vocabulary)
        offline = {**os.environ, "HF_HUB_OFFLINE": "1", "XDG_CACHE_HOME": folder}
        serve = [os.path.join(os.path.abspath(binaries), "ferry"), "serve", "-m", model, "--backend", "cpu", "--log-level", "warn",
                 "--port", str(grpc), "--http-port", str(http)]  # fmt: skip
        launch = [sys.executable, "-m", "smg", "launch", "--host", "127.0.0.1", "--port", str(door), "--worker-urls",
                  f"grpc://127.0.0.1:{grpc}", "--model-path", NAME, "--backend", "vllm",
                  "--prometheus-host", "127.0.0.1", "--prometheus-port", str(metrics), "--log-level", "warn"]  # fmt: skip
        ferry = subprocess.Popen(serve, env=offline)
        smg = None
        try:
            await_answer(f"http://127.0.0.1:{http}/health", 60, ferry)
            smg = subprocess.Popen(launch, env=offline, cwd=folder)
            await_answer(f"http://127.0.0.1:{door}/readiness", 60, smg)
            check(f"http://127.0.0.1:{http}", f"http://127.0.0.1:{door}")
        finally:
            for process in (smg, ferry):
                if process is not None:
                    end(process)
    print("SMG in front of Ferry answers as Ferry does")
    return 0


if __name__ == "__main__":
    sys.exit(main())
