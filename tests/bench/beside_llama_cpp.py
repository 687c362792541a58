#!/usr/bin/env python3
"""Ferry beside llama.cpp on the CPU, in one run.

    python3 -m venv build/llama && build/llama/bin/pip install numpy xllamacpp==2026.10.11549 llama-cpp-py-sync==0.11548
    build/llama/bin/python tests/bench/beside_llama_cpp.py accuracy build/release/bin ../shared/golden
    build/llama/bin/python tests/bench/beside_llama_cpp.py formats build/release/bin /tmp/models --types q4_k,iq4_xs --turns 5

accuracy: for each NAME.gguf with its NAME.json, the root mean square and the largest difference of the prompts' log-probabilities from
those of float32 weights, as both programs compute them with a cache in F16. Ends with 1 where Ferry's root mean square on a quantised
file is above 0.10 or above that of llama.cpp.
formats: a model of 4 layers x 64 experts of Qwen3-30B's shape for each type, prefill of 512 tokens and decode behind it, in turns;
medians of the rates and of the ratios. The machine should do nothing else meanwhile; where others use it, --best takes each program's
fastest turn.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from llama_cpp import LlamaCpp

TYPES = ("q4_0 q8_0 mxfp4 q4_1 q5_0 q5_1 iq4_nl q2_k q3_k q4_k q5_k q6_k iq4_xs iq1_s iq1_m iq2_xxs iq2_xs iq2_s iq3_xxs iq3_s "
         "tq2_0").split()
MOST = 0.10  # nats, of the root mean square on quantised files


def ferry(programs, *arguments):
    done = subprocess.run([programs / "ferry", *map(str, arguments)], capture_output=True, text=True, timeout=600)
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return done.stdout


def accuracy(args):
    worse = []
    print("| file | Ferry: rms | largest | llama.cpp: rms | largest |\n| --- | ---: | ---: | ---: | ---: |")
    for path in sorted(args.folder.glob("*.gguf")):
        cases = json.loads(path.with_suffix(".json").read_text())["cases"]
        figures = [*figures_of(ferry_differences, args, path, cases), *figures_of(llama_differences, args, path, cases)]
        cells = ["refuses it" if figure is None else "%.1e" % figure for figure in figures]
        print("| " + " | ".join([path.stem, *cells]) + " |", flush=True)
        ours, _, theirs, _ = figures
        quantised = "-f32" not in path.stem and not path.stem.endswith("-27l")
        if ours is None or (quantised and ours > min(MOST, MOST if theirs is None else theirs)):
            worse.append(path.stem)
    if worse:
        sys.exit("worse than it may be: " + ", ".join(worse))


def figures_of(differences, args, path, cases):
    """The root mean square and the largest; None twice for a file that the program refuses."""
    try:
        found = differences(args, path, cases)
    except RuntimeError as error:
        print(f"{path.stem}: {error}", file=sys.stderr)
        return None, None
    return math.sqrt(sum(d * d for d in found) / len(found)), max(map(abs, found))


def ferry_differences(args, path, cases):
    differences = []
    for case in cases:
        with tempfile.NamedTemporaryFile("w", suffix=".ids") as ids:
            ids.write(" ".join(map(str, case["ids"])))
            ids.flush()
            scored = json.loads(ferry(args.programs, "score", "-m", path, "--backend", "cpu", "--no-bos", "--ids", ids.name, "--json"))
        got = scored["logprobs"][-len(case["logprob"]):]
        differences += [g - want for g, want in zip(got, case["logprob"], strict=True)]
    return differences


def llama_differences(args, path, cases):
    # llama.cpp knows models without this key by the number of their layers alone.
    lacking = {"deepseek2.attention.q_lora_rank": 0} if path.stem.startswith("deepseek2-lite") else {}
    with LlamaCpp(path, 512, args.threads, lacking) as llama:
        return [g - want for case in cases for g, want in zip(llama.log_probabilities(case["ids"]), case["logprob"], strict=True)]


def formats(args):
    args.folder.mkdir(exist_ok=True)
    print("| experts | Ferry: prefill, t/s | decode | llama.cpp: prefill | decode | ratio of prefill | of decode |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name in args.types.split(","):
        path = args.folder / f"{name}.gguf"
        try:
            if not path.exists():
                ferry(args.programs, "make-model", path, "--like", "qwen3-30b", "--layers", 4, "--experts", 64, "--vocab", 32000,
                      "--expert-type", name, "--dense-type", "q8_0")
            print("| " + " | ".join([name, *turns(args, path)]) + " |", flush=True)
        except RuntimeError as error:
            print(f"| {name} | {error} |", flush=True)
        if not args.keep:
            path.unlink(missing_ok=True)


def turns(args, path):
    rows = []
    with LlamaCpp(path, 1024, args.threads) as llama:
        llama.rates(args.prompt, 4)
        for _ in range(args.turns):
            ours = ferry_rates(args, path)
            rows.append((*ours, *llama.rates(args.prompt, args.decode)))
    if args.best:
        rows = [tuple(map(max, zip(*rows)))]
    prefill, decode, their_prefill, their_decode = map(statistics.median, zip(*rows))
    ratios = [statistics.median(row[i] / row[i + 2] for row in rows) for i in (0, 1)]
    return ["%.0f" % prefill, "%.1f" % decode, "%.0f" % their_prefill, "%.1f" % their_decode, *("%.2f" % ratio for ratio in ratios)]


def ferry_rates(args, path):
    out = ferry(args.programs, "bench", "-m", path, "--backend", "cpu", "-p", args.prompt, "-n", args.decode, "-r", 1, "--json")
    line = json.loads(out.strip().splitlines()[-1])
    return line["s_pp"], line["s_tg"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["accuracy", "formats"])
    parser.add_argument("programs", type=Path, help="the folder of Ferry's programs")
    parser.add_argument("folder", type=Path, help="of the golden models, or for the models of the formats")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--types", default=",".join(TYPES))
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--best", action="store_true", help="the fastest turn of each program instead of medians")
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--decode", type=int, default=32)
    parser.add_argument("--keep", action="store_true", help="leave the models where they were made")
    args = parser.parse_args()
    (accuracy if args.what == "accuracy" else formats)(args)


if __name__ == "__main__":
    sys.exit(main())
