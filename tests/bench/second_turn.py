#!/usr/bin/env python3
"""What the second turn of a long conversation costs, with another conversation in between.

    tests/bench/second_turn.py BIN_DIR MODEL [TOKENS]      4096 tokens unless said otherwise

Three servers, one after the other: with two slots, where the first conversation stays in the device's memory; with one slot and
memory for one conversation, where it goes to host memory (--cache-ram) and comes back; and the same with --cache-ram 0, where it
is computed anew. Prints the time to the first token and the tokens that were found, as the answers and the counters of /metrics
tell them. Ends with 1 when a second turn computes more than its new tokens and two blocks.
"""

import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

NEW_TOKENS = 64  # of the second turn
BLOCK = 32
ANSWER = 16


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def get(port, path):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as response:
        return response.read().decode()


def generate(port, tokens):
    """Ids of the answer, seconds to its first token, and how many tokens of the prompt were found."""
    body = {"prompt": tokens, "max_tokens": ANSWER, "temperature": 0, "ignore_eos": True, "stream": True,
            "stream_options": {"include_usage": True}}  # fmt: skip
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    began = time.monotonic()
    first = found = None
    text = ""
    with urllib.request.urlopen(request, timeout=600) as response:
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            text += "".join(choice["text"] for choice in event["choices"])
            if event["choices"] and first is None:
                first = time.monotonic() - began
            if event.get("usage"):
                found = event["usage"]["prompt_tokens_details"]["cached_tokens"]
    return text, first, found


def conversation(binaries, model, tokens, slots, cache_ram):
    context = tokens + NEW_TOKENS + 2 * ANSWER + 2 * BLOCK
    port = free_port()
    command = [os.path.join(binaries, "ferry"), "serve", "-m", model, "--backend", "cpu", "--port", "0", "--http-port", str(port)]
    command += ["-np", str(slots), "-c", str(context * slots), "--cache-ram", cache_ram]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            end = time.monotonic() + 120
            while True:
                try:
                    get(port, "/health")
                    break
                except OSError:
                    if process.poll() is not None or time.monotonic() > end:
                        log.seek(0)
                        sys.exit("ferry serve does not serve: " + log.read())
                    time.sleep(0.2)
            chance = random.Random(1)
            ids = lambda count: [chance.randrange(300, 2000) for _ in range(count)]  # noqa: E731
            first, other = ids(tokens), ids(tokens)
            generate(port, ids(8))  # threads and memory are there
            _, cold, _ = generate(port, first)
            generate(port, other)
            _, warm, found = generate(port, first + ids(NEW_TOKENS))
            counters = [line for line in get(port, "/metrics").splitlines() if line.startswith("ferry_prefix_cache_")]
            return cold, warm, found, {line.split("{")[0][19:]: int(float(line.rsplit(" ", 1)[1])) for line in counters}
        finally:
            process.terminate()
            process.wait(60)


def main():
    binaries, model = sys.argv[1:3]
    tokens = int(sys.argv[3]) if len(sys.argv) > 3 else 4096
    wrong = False
    for what, slots, cache_ram in (("device", 2, "0"), ("host", 1, "1GiB"), ("nothing kept", 1, "0")):
        cold, warm, found, counters = conversation(binaries, model, tokens, slots, cache_ram)
        print(f"{what:13} first turn {cold:6.2f} s, second turn {warm:6.2f} s ({cold / warm:.1f} times); {found} of "
              f"{tokens + NEW_TOKENS} tokens found; {counters}")  # fmt: skip
        wrong |= what != "nothing kept" and found < tokens - 2 * BLOCK
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
