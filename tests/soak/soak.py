#!/usr/bin/env python3
"""Mixed requests for some minutes, while workers are killed or stopped: no request may fail or give another text than alone, and
processes may hold no more at the end than at the beginning.

    tests/soak/soak.py                          10 minutes, a worker killed every 20 seconds
    tests/soak/soak.py --requests 20000         longer, until there were so many requests
    tests/soak/soak.py --minutes 1 --every 10
    tests/soak/soak.py --stop                   every third time the worker is stopped (SIGSTOP) instead

Needs the programs of a build (--bin) and nothing beside Python's own library. Ends with 1 when anything was wrong.
"""

import argparse
import collections
import http.client
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
START_SECONDS = 120
REQUEST_SECONDS = 300
KINDS = ["whole", "cancelled", "slow"]
RESIDENT_GROWTH = 1.2  # of what a process held after the warm-up


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def asks():
    """Requests whose text depends on nothing but themselves."""
    story = (ROOT / "models" / "README.md").read_text(encoding="utf-8")
    for i in range(24):
        prompt = story[i * 40 : i * 40 + (20 if i % 6 else 2400)]
        yield {
            "prompt": f"{i} {prompt}",
            "max_tokens": 12 if i % 6 == 0 else 10 + 4 * i,
            "seed": i,
            "temperature": 0 if i % 4 == 0 else 0.9,
            "frequency_penalty": 0.2 if i % 5 == 0 else 0,
            "stream": True,
        }


def generate(port, ask, give_up_after=None, pause=0):
    """The streamed text; None: it was given up after so many events."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=REQUEST_SECONDS)
    try:
        connection.request("POST", "/v1/completions", json.dumps(ask), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"HTTP {response.status}: {response.read(500)!r}")
        text, events, done = "", 0, False
        for line in response:
            if not line.startswith(b"data: "):
                continue
            if line.strip() == b"data: [DONE]":
                done = True
                break
            event = json.loads(line[6:])
            if "error" in event:
                raise RuntimeError(f"after {events} events: {event['error']}")
            text += "".join(choice["text"] for choice in event["choices"])
            events += 1
            if give_up_after is not None and events >= give_up_after:
                return None
            time.sleep(pause)
        if not done:
            raise RuntimeError(f"the stream broke off after {events} events")
        return text
    finally:
        connection.close()


class Service:
    def __init__(self, arguments):
        self.port = free_port()
        command = [f"{arguments.bin}/ferry", "serve", "-m", str(ROOT / "models" / "demo-moe.gguf"), "--backend", "cpu"]
        command += ["--workers", str(arguments.workers), "--expert-transport", arguments.transport, "-np", "6"]
        command += ["--port", "0", "--http-port", str(self.port), "--resume-patience", "120"]
        self.log = open(arguments.log, "w", encoding="utf-8")
        self.process = subprocess.Popen(command, stdout=self.log, stderr=self.log)
        deadline = time.monotonic() + START_SECONDS
        try:
            while not self.serves():
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"ferry serve does not serve; its words are in {arguments.log}")
                time.sleep(0.2)
        except BaseException:
            self.end()
            raise

    def metrics(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", "/metrics")
            lines = connection.getresponse().read().decode().splitlines()
        finally:
            connection.close()
        values = {}
        for line in lines:
            if not line.startswith("#") and " " in line:
                name, value = line.rsplit(" ", 1)
                values[name.split("{")[0]] = float(value)
        return values

    def serves(self):
        try:
            return self.metrics().get("ferry_serving") == 1
        except (OSError, http.client.HTTPException):
            return False

    def children(self, program):
        """Process ids by the order of their start."""
        found = []
        for entry in pathlib.Path("/proc").iterdir():
            try:
                fields = (entry / "stat").read_text().rsplit(") ", 1)[1].split()
                command = (entry / "cmdline").read_bytes().split(b"\0")[0]
            except (OSError, IndexError):
                continue
            if int(fields[1]) == self.process.pid and command.endswith(program.encode()):
                found.append(int(entry.name))
        return sorted(found)

    def holdings(self):
        """Of the processes that stay: resident bytes, descriptors, threads."""
        held = {}
        for program in ("ferry-coordinator", "ferry-gateway"):
            (pid,) = self.children(program)
            status = pathlib.Path(f"/proc/{pid}/status").read_text().split("\n")
            values = dict(line.split(":", 1) for line in status if ":" in line)
            private = int(values["RssAnon"].split()[0]) * 1024
            held[program] = (private, len(os.listdir(f"/proc/{pid}/fd")), int(values["Threads"]))
        return held

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return "ferry serve did not end within a minute"
        return None


class Soak:
    def __init__(self, arguments, service):
        self.arguments, self.service = arguments, service
        self.asks = list(asks())
        self.alone = [generate(service.port, ask) for ask in self.asks]
        self.counts = collections.Counter()
        self.wrong = []
        self.lock = threading.Lock()
        self.over = threading.Event()

    def note(self, what, wrong=None):
        with self.lock:
            self.counts[what] += 1
            if wrong is not None and len(self.wrong) < 20:
                self.wrong.append(wrong)

    def client(self, number):
        chance = random.Random(self.arguments.seed * 1000 + number)
        while not self.over.is_set():
            i = chance.randrange(len(self.asks))
            kind = chance.choices(KINDS, [8, 1, 1])[0]
            try:
                text = generate(
                    self.service.port,
                    self.asks[i],
                    give_up_after=chance.randrange(1, 8) if kind == "cancelled" else None,
                    pause=0.02 if kind == "slow" else 0,
                )
            except (OSError, RuntimeError, ValueError, http.client.HTTPException) as error:
                if not self.over.is_set():
                    self.note("failed", f"request {i}: {error}")
                    self.over.wait(0.1)
                continue
            if text is not None and text != self.alone[i]:
                self.note("other text", f"request {i}: {text[:80]!r}, alone {self.alone[i][:80]!r}")
            else:
                self.note(kind)

    def strike(self):
        chance = random.Random(self.arguments.seed)
        strikes = 0
        while not self.over.wait(self.arguments.every):
            workers = self.service.children("ferry-worker")
            if not workers:
                continue
            stops = self.arguments.stop and strikes % 3 == 2
            os.kill(chance.choice(workers), signal.SIGSTOP if stops else signal.SIGKILL)
            strikes += 1
            self.note("stopped workers" if stops else "killed workers")

    def run(self):
        before = self.service.holdings()
        # Daemons, so that an interrupted run need not wait for requests that are under way.
        threads = [threading.Thread(target=self.client, args=(i,), daemon=True) for i in range(self.arguments.clients)]
        threads.append(threading.Thread(target=self.strike, daemon=True))
        for thread in threads:
            thread.start()
        try:
            time.sleep(60 * self.arguments.minutes)
            while sum(self.counts[kind] for kind in KINDS) < self.arguments.requests and not self.wrong:
                time.sleep(1)
        finally:
            self.over.set()
        for thread in threads:
            thread.join()
        self.check_holdings(before)

    def check_holdings(self, before):
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            metrics = self.service.metrics()
            if metrics["ferry_serving"] == 1 and metrics["ferry_num_requests_running"] == 0:
                break
            time.sleep(0.5)
        self.counts["resumed"] = int(metrics["ferry_requests_resumed_total"])
        if metrics["ferry_kv_cache_usage_perc"] != 0:
            self.wrong.append(f"{metrics['ferry_kv_cache_usage_perc']:.0%} of the KV cache is in use, and nothing runs")
        time.sleep(2)
        after = self.service.holdings()
        for program, (resident, descriptors, threads) in after.items():
            resident_before, descriptors_before, threads_before = before[program]
            print(
                f"{program}: private memory {resident_before >> 20} -> {resident >> 20} MiB, descriptors {descriptors_before} -> "
                f"{descriptors}, threads {threads_before} -> {threads}"
            )
            if resident > resident_before * RESIDENT_GROWTH + (32 << 20):
                self.wrong.append(f"{program} holds {resident >> 20} MiB, {resident_before >> 20} at the beginning")
            if descriptors > descriptors_before + 16 or threads > threads_before + 16:
                self.wrong.append(f"{program} has {descriptors} descriptors and {threads} threads")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--requests", type=int, default=0, help="goes on until there were so many")
    parser.add_argument("--every", type=float, default=20, help="seconds between two workers that are killed")
    parser.add_argument("--stop", action="store_true", help="every third worker is stopped instead of killed")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--transport", choices=["auto", "shm", "grpc"], default="auto")
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--bin", default=str(ROOT / "build" / "release" / "bin"))
    parser.add_argument("--log", default="soak.log", help="where the words of ferry serve go")
    arguments = parser.parse_args()
    # As Ctrl-C: the service ends too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    service = Service(arguments)
    soak = None
    interrupted = False
    try:
        soak = Soak(arguments, service)
        soak.run()
    except KeyboardInterrupt:
        interrupted = True
    finally:
        ended = service.end()
    if interrupted:
        print("interrupted:", ", ".join(f"{count} {what}" for what, count in sorted(soak.counts.items())) if soak else "at the start")
        return 130
    if ended:
        soak.wrong.append(ended)
    print(", ".join(f"{count} {what}" for what, count in sorted(soak.counts.items())))
    for wrong in soak.wrong:
        print("wrong:", wrong)
    return 1 if soak.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
