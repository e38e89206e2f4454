"""Measures llama.cpp and `idiolect bench` on the same work, in turns, on the same cores, and prints medians and ratios.

    measure.py [--bench PATH] [--idiolect PATH] [--theirs FILE.gguf] [--ours SPEC] [--threads T] [--rounds R]
               [-n 1,4,8,16] [--prompt-tokens 512] [--new-tokens 32]

Needs Python 3.9 and Linux. `--bench` is llama.cpp's own `llama-batched-bench`; its prompt is shared by the sequences (`-pps`)
and its cache is one (`-kvu`), as for a request with `"n": 8`, so nothing of HTTP is in its figures. Both programs run on
the first T cores and on as many threads. Every round runs each of them once for each n, in a process of its own, whose
peak resident memory is that of one such piece of work. Best of n is n times the new tokens by the time of prompt and
candidates together.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile


def run(command, cores):
    """Runs a command on some cores; returns what it wrote, and its peak resident memory in MB."""
    with tempfile.TemporaryFile("w+") as out:
        child = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, preexec_fn=lambda: os.sched_setaffinity(0, cores)
        )
        _, status, used = os.wait4(child.pid, 0)
        out.seek(0)
        text = out.read()
    if status:
        sys.exit(f"{command[0]} failed with status {status}:\n{text[-2000:]}")
    return text, used.ru_maxrss * 1024 / 1e6


def theirs(args, n, cores):
    room = args.prompt_tokens + n * args.new_tokens + 64
    batch = ["-b", "512", "-ub", "512", "-pps", "-kvu", "-t", str(args.threads), "-tb", str(args.threads)]
    work = ["-npp", str(args.prompt_tokens), "-ntg", str(args.new_tokens), "-npl", str(n)]
    text, peak = run([args.bench, "-m", args.theirs, "-c", str(room), *batch, *work], cores)
    for line in text.splitlines():
        cells = re.findall(r"[0-9.]+", line)
        if line.startswith("|") and len(cells) == 10 and int(cells[2]) == n:
            time, prefill, decode = float(cells[8]), float(cells[5]), float(cells[7])
            return {"prefill": prefill, "decode": decode, "best": n * args.new_tokens / time, "peak": peak}
    sys.exit(f"{args.bench} printed no row for {n}:\n{text[-2000:]}")


def ours(args, n, cores):
    work = ["--prompt-tokens", str(args.prompt_tokens), "--new-tokens", str(args.new_tokens), "-n", str(n)]
    flags = ["--threads", str(args.threads), "--repeat", "1", "--json"]
    text, _ = run([args.idiolect, "bench", "--model", args.ours, *work, *flags], cores)
    row = json.loads(text[text.index("{") :])["rows"][0]
    return {
        "prefill": row["prefill_tok_s"],
        "decode": row["decode_tok_s"],
        "best": row["best_of_n_tok_s"],
        "peak": row["peak_rss_mb"],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", default="llama-batched-bench", help="llama.cpp's llama-batched-bench")
    parser.add_argument("--idiolect", default="target/release/idiolect")
    parser.add_argument("--theirs", required=True, help="the file that llama.cpp loads")
    parser.add_argument("--ours", default="smollm2-135m", help="the model that Idiolect loads")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-n", default="1,8,16", help="numbers of candidates")
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=32)
    args = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[: args.threads]
    numbers = [int(n) for n in args.n.split(",")]

    rows = {(n, side): [] for n in numbers for side in (theirs, ours)}
    for _ in range(args.rounds):
        for n in numbers:
            for side in (theirs, ours):
                rows[n, side].append(side(args, n, cores))

    print(f"{args.threads} thread(s) on cores {cores}, medians of {args.rounds} runs in turns: llama.cpp | Idiolect | ratio")
    for n in numbers:
        for what, unit in (("prefill", "tokens/s"), ("decode", "tokens/s"), ("best", "tokens/s"), ("peak", "MB")):
            his, mine = (statistics.median(row[what] for row in rows[n, side]) for side in (theirs, ours))
            name = f"best of {n}" if what == "best" else f"{what}, n = {n}"
            print(f"{name:16} {his:9.1f} | {mine:9.1f} | {mine / his:5.2f}  {unit}")


if __name__ == "__main__":
    main()
