#!/usr/bin/env python3
"""What TLS, keys and mutual TLS between hosts cost: ratios of runs that alternate.

    tests/bench/costs.py                     30 pairs of each
    tests/bench/costs.py tls keys            some of them: none, tls, keys, hosts, tcp, ways, mtls, grpc-mtls
    tests/bench/costs.py --pairs 100 --tokens 200

Each pair decodes once through either service, in an order that changes; the two services run all the time. A ratio is the seconds
of a token with the feature, divided by those without, so 1.05 is a cost of 5 %; beside it, the same of the processor time that all of
Ferry's processes took. Other programs on the machine disturb the seconds of single pairs, and the processor time much less; the
median and the quartiles of many say what is left. `none` compares a service with another of its kind: its spread is the
measurement's own. `hosts` and `tcp` compare two workers between two hosts, whose hidden states go over gRPC or a data connection, with
two that speak gRPC in clear through Unix sockets; `ways` compares tcp with gRPC, both between hosts. `mtls` compares two hosts as they
are, with mutual TLS and data connections, with two that speak plain gRPC alone, and `grpc-mtls` those that speak gRPC with mutual TLS
alone; grpc_in_clear.cc takes the TLS out. The second host is a network
namespace where root runs this, otherwise loopback. Needs the programs of a build (--bin), openssl for a certificate, and nothing beside Python's own library.
"""

import argparse
import atexit
import functools
import json
import os
import pathlib
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
START_SECONDS = 120
RUN_SECONDS = 300
MODEL = ROOT / "models" / "demo-moe.gguf"
EXPERTS_BY_GRPC = ["--expert-transport", "grpc"]
NETWORK_OF_ITS_OWN = "FERRY_COSTS_NETWORK"  # is set where this program may give itself addresses


class Service:
    """`ferry serve` with `arguments`, and how clients reach it."""

    def __init__(self, folder, name, binaries, arguments, environment=None, in_clear=False):
        self.folder, self.name, self.binaries = folder, name, binaries
        self.environment = {**os.environ, **(environment or {})}
        self.server_environment = dict(os.environ)
        self.log = folder / f"{name}.log"
        self.processes = []
        if in_clear:
            self.server_environment["LD_PRELOAD"] = str(binaries / "libgrpc_in_clear.so")
        self.start([binaries / "ferry", "serve", "-m", MODEL, "--backend", "cpu", "--port", "0", "--http-port", "0", *arguments], self.log)

    def start(self, command, log):
        command = [str(word) for word in command]
        with open(log, "w", encoding="utf-8") as file:
            self.processes.append(subprocess.Popen(command, stdout=file, stderr=file, env=self.server_environment))

    def wait_for(self, words):
        """What the log has behind `words`."""
        deadline = time.monotonic() + START_SECONDS
        while words not in self.log.read_text():
            if any(process.poll() is not None for process in self.processes) or time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} does not say '{words}':\n{self.log.read_text()[-2000:]}")
            time.sleep(0.2)
        return self.log.read_text().split(words, 1)[1]

    def wait_until_serving(self):
        self.address = self.wait_for("serving on ").split()[0]

    def process_ids(self):
        """Of the service's processes and their children."""
        parents = {}
        for entry in pathlib.Path("/proc").glob("[0-9]*"):
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(") ", 1)[1].split()[1])
            except OSError:
                continue
        found = {process.pid for process in self.processes}
        while more := {pid for pid, parent in parents.items() if parent in found} - found:
            found |= more
        return found

    def processor_seconds(self):
        total = 0
        for pid in self.process_ids():
            for task in pathlib.Path(f"/proc/{pid}/task").glob("*/schedstat"):
                total += int(task.read_text().split()[0])
        return total * 1e-9

    def cost_of_a_token(self, tokens):
        """Seconds, and seconds of the processor, the client's among them."""
        def used():
            clients = resource.getrusage(resource.RUSAGE_CHILDREN)
            return self.processor_seconds() + clients.ru_utime + clients.ru_stime

        before = used()
        seconds = self.seconds_of_a_token(tokens)
        return seconds, (used() - before) / tokens

    def seconds_of_a_token(self, tokens):
        command = [self.binaries / "ferry", "bench", "--server", self.address, "-p", "16", "-n", str(tokens), "-r", "1", "--json"]
        run = subprocess.run(
            [str(word) for word in command], env=self.environment, capture_output=True, text=True, timeout=RUN_SECONDS, check=False
        )
        if run.returncode != 0:
            raise RuntimeError(f"ferry bench: {run.stderr}")
        result = json.loads(run.stdout.splitlines()[0])
        return result["t_tg"] / result["tg"]

    def end(self):
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run(command):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]}: {done.stderr}")
    return done.stdout


def none_pair(folder, binaries):
    return [Service(folder, f"none{i}", binaries, []) for i in range(2)]


def tls_pair(folder, binaries):
    key, certificate = folder / "tls-key.pem", folder / "tls-chain.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    run([*command, "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate])
    with_tls = ["--tls-cert", certificate, "--tls-key", key]
    return [
        Service(folder, "clear", binaries, []),
        Service(folder, "tls", binaries, with_tls, environment={"FERRY_TLS_CA": str(certificate)}),
    ]


def keys_pair(folder, binaries):
    key = run([binaries / "ferry", "api-key", "bench", "--admin", "--file", folder / "keys"]).split()[0]
    return [
        Service(folder, "open", binaries, []),
        Service(folder, "keys", binaries, ["--api-keys", folder / "keys"], environment={"FERRY_API_KEY": key}),
    ]


class SecondHost:
    """How to run a program on another host, and what addresses the two have."""

    def __init__(self):
        self.prefix, self.addresses = [], ["127.0.0.1", "127.0.0.1"]
        if NETWORK_OF_ITS_OWN not in os.environ:
            return
        self.holder = subprocess.Popen(["unshare", "--net", "sh", "-c", "echo; exec sleep infinity"], stdout=subprocess.PIPE)
        atexit.register(self.holder.kill)
        self.holder.stdout.readline()  # it is in its network now
        self.prefix = ["nsenter", f"--target={self.holder.pid}", "--net"]
        self.addresses = ["192.0.2.1", "192.0.2.2"]
        run(["ip", "link", "add", "near", "type", "veth", "peer", "name", "far", "netns", str(self.holder.pid)])
        for prefix, link, address in [([], "near", self.addresses[0]), (self.prefix, "far", self.addresses[1])]:
            run([*prefix, "ip", "addr", "add", f"{address}/24", "dev", link])
            for each in ["lo", link]:
                run([*prefix, "ip", "link", "set", each, "up"])


@functools.cache
def second_host():
    return SecondHost()


class TwoHosts(Service):
    """A coordinator and a worker on one host, a worker on another, with mutual TLS or by plain gRPC."""

    def __init__(self, folder, binaries, way, experts=tuple(EXPERTS_BY_GRPC), in_clear=False):
        second = second_host()
        name = f"{way}-in-clear" if in_clear else way
        certificates = folder / f"{name}-certificates"
        run([binaries / "ferry", "cluster-init", "--cluster-certs", certificates])
        plane = f"{second.addresses[0]}:{free_port()}"
        own = ["--coordinator-only", "--workers", "2", "--cluster-listen", plane, "--cluster-certs", certificates]
        super().__init__(folder, name, binaries, [*own, *experts], in_clear=in_clear)
        self.wait_for("coordinator at")
        for i, prefix in enumerate([[], second.prefix]):
            own = certificates  # in clear nobody looks at them
            if not in_clear:
                own = folder / f"{name}-worker{i}"
                token = run([binaries / "ferry", "cluster-token", "--cluster-certs", certificates]).strip()
                run([*prefix, binaries / "ferry", "join", plane, "--cluster-certs", own, "--token", token])
            command = [binaries / "ferry-worker", "--backend", "cpu", "--coordinator", plane, "--cluster-certs", own, "--worker-id", str(i)]
            listen = ["--listen", second.addresses[i], "--transport", way]
            self.start([*prefix, *command, *listen, *experts], folder / f"{name}-worker{i}.log")


def one_host(folder, binaries):
    return Service(folder, "sockets", binaries, ["--workers", "2", "--transport", "grpc", *EXPERTS_BY_GRPC])


def hosts_pair(folder, binaries):
    return [one_host(folder, binaries), TwoHosts(folder, binaries, "grpc")]


def tcp_pair(folder, binaries):
    return [one_host(folder, binaries), TwoHosts(folder, binaries, "tcp")]


def ways_pair(folder, binaries):
    return [TwoHosts(folder, binaries, "grpc"), TwoHosts(folder, binaries, "tcp")]


def mtls_pair(folder, binaries):
    return [TwoHosts(folder, binaries, "grpc", in_clear=True), TwoHosts(folder, binaries, "tcp", ["--expert-transport", "tcp"])]


def grpc_mtls_pair(folder, binaries):
    return [TwoHosts(folder, binaries, "grpc", in_clear=True), TwoHosts(folder, binaries, "grpc")]


PAIRS = {
    "none": none_pair,
    "tls": tls_pair,
    "keys": keys_pair,
    "hosts": hosts_pair,
    "tcp": tcp_pair,
    "ways": ways_pair,
    "mtls": mtls_pair,
    "grpc-mtls": grpc_mtls_pair,
}


def compare(name, pair, arguments):
    ratios, without = [], []
    for i in range(arguments.pairs + 1):
        order = [0, 1] if i % 2 == 0 else [1, 0]
        costs = {which: pair[which].cost_of_a_token(arguments.tokens) for which in order}
        if i > 0:  # the first pair warms both up
            ratios.append([costs[1][kind] / costs[0][kind] for kind in range(2)])
            without.append(costs[0][0])
    words = []
    for kind, what in enumerate(["seconds", "processor time"]):
        low, median, high = statistics.quantiles([ratio[kind] for ratio in ratios], n=4)
        words.append(f"{median:.3f} times the {what} (quartiles {low:.3f} to {high:.3f})")
    rate = 1 / statistics.median(without)
    print(f"{name:9} {', '.join(words)}; {len(ratios)} pairs, without {rate:.0f} tokens a second", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", help=f"{', '.join(PAIRS)}; default: all")
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "build" / "release" / "bin")
    arguments = parser.parse_args()
    if unknown := set(arguments.what) - set(PAIRS):
        parser.error(f"no such cost: {', '.join(unknown)}")
    if os.geteuid() == 0 and NETWORK_OF_ITS_OWN not in os.environ:
        os.environ[NETWORK_OF_ITS_OWN] = "yes"
        os.execvp("unshare", ["unshare", "--net", sys.executable, *sys.argv])
    if NETWORK_OF_ITS_OWN in os.environ:
        run(["ip", "link", "set", "lo", "up"])
    for name in arguments.what or PAIRS:
        with tempfile.TemporaryDirectory() as folder:
            pair = PAIRS[name](pathlib.Path(folder), arguments.bin)
            try:
                for service in pair:
                    service.wait_until_serving()
                compare(name, pair, arguments)
            finally:
                for service in pair:
                    service.end()


if __name__ == "__main__":
    sys.exit(main())
