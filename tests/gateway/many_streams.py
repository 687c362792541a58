"""Two hundred streams at once through one ferry-gateway, in front of a scripted coordinator: each gets all its tokens.

    many_streams.py BIN_DIR [STREAMS]
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time

TOKENS = 200


async def stream(port):
    """The answer to a request whose tokens come every 2 ms."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = json.dumps({"prompt": "forever", "max_tokens": TOKENS, "stream": True}).encode()
    head = f"POST /v1/completions HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    answer = await reader.read(-1)
    writer.close()
    return answer


async def streams_together(port, streams):
    began = time.monotonic()
    answers = await asyncio.gather(*(stream(port) for _ in range(streams)))
    for answer in answers:
        assert answer.startswith(b"HTTP/1.1 200") and answer.rstrip().endswith(b"data: [DONE]"), answer[-300:]
        assert answer.count(b'"text":"more "') == TOKENS, answer.count(b'"text":"more "')
    print(f"{streams} streams of {TOKENS} tokens without an error in {time.monotonic() - began:.1f} s")


def line_of(path, process):
    end = time.monotonic() + 60
    while not (os.path.exists(path) and open(path).read().endswith("\n")):
        assert process.poll() is None and time.monotonic() < end, f"{process.args[0]} did not write {path}"
        time.sleep(0.05)
    return open(path).read().strip()


def main():
    binaries = sys.argv[1]
    streams = int(sys.argv[2]) if len(sys.argv) > 2 else 200
    with tempfile.TemporaryDirectory() as folder:
        engine_file, port_file = os.path.join(folder, "engine"), os.path.join(folder, "port")
        processes = [subprocess.Popen([os.path.join(binaries, "scripted_coordinator"), engine_file], stdin=subprocess.PIPE)]
        try:
            coordinator = line_of(engine_file, processes[0])
            processes.append(subprocess.Popen(
                [os.path.join(binaries, "ferry-gateway"), "--listen", "127.0.0.1:0", "--coordinator", coordinator,
                 "--port-file", port_file, "--log-level", "warn"]))  # fmt: skip
            asyncio.run(streams_together(int(line_of(port_file, processes[1])), streams))
        finally:
            for process in reversed(processes):
                process.terminate()
                process.wait(30)


main()
