"""Measures PyTorch transformers' `generate(num_return_sequences=n)` and `idiolect bench` on the same work, in turns.

    measure.py DIR [--ours SPEC] [--idiolect PATH] [--device cuda] [--dtype bfloat16] [--kv-type f16] [--threads T]
               [--rounds R] [-n 1,8] [--prompt-tokens 512] [--new-tokens 64]

Needs Python 3.9, torch and transformers, and an `idiolect` that was built for the device. `DIR` is a model's folder as the
hub has it, which both load; `model.py` writes one. transformers runs the same prompt n times over, as `generate` does; both
sides draw with the same temperature, top-k and top-p, and neither stops early. Each side is warmed up by one piece of work that does not
count, then every round runs each once for each n. Best of n is n times the new tokens by the time of prompt and candidates
together. Printed are medians of the rounds, and what was compared.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

import torch
import transformers


class Theirs:
    def __init__(self, args):
        if args.threads:
            torch.set_num_threads(args.threads)
        self.args = args
        dtype = getattr(torch, args.dtype)
        self.model = transformers.AutoModelForCausalLM.from_pretrained(args.dir, dtype=dtype).to(args.device).eval()
        vocabulary = self.model.config.vocab_size
        self.tokens = [3 + i * 37 % min(200, vocabulary - 3) for i in range(args.prompt_tokens)]

    def wait(self):
        if self.args.device.startswith("cuda"):
            torch.cuda.synchronize()

    def generate(self, n, new):
        prompt = torch.tensor([self.tokens], device=self.args.device)
        self.wait()
        began = time.perf_counter()
        with torch.inference_mode():
            out = self.model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                do_sample=True,
                temperature=0.8,
                top_k=40,
                top_p=0.95,
                num_return_sequences=n,
                min_new_tokens=new,
                max_new_tokens=new,
                pad_token_id=0,
            )
        self.wait()
        took = time.perf_counter() - began
        if tuple(out.shape) != (n, len(self.tokens) + new):
            sys.exit(f"transformers gave {tuple(out.shape)}, expected {n} times {len(self.tokens) + new} tokens")
        return took

    def run(self, n):
        # The time of the first token is that of the prompt, n times over.
        prefill, whole = self.generate(n, 1), self.generate(n, self.args.new_tokens)
        decode = n * (self.args.new_tokens - 1) / max(whole - prefill, 1e-9)
        return {
            "prefill": len(self.tokens) / prefill,
            "decode": decode,
            "best": n * self.args.new_tokens / whole,
        }

    def describe(self):
        where = torch.cuda.get_device_name() if self.args.device.startswith("cuda") else f"{torch.get_num_threads()} threads"
        return f"transformers {transformers.__version__}, torch {torch.__version__}, {self.args.dtype}, {where}"


class Ours:
    def __init__(self, args):
        self.args = args
        self.told = None

    def run(self, n):
        args = self.args
        work = ["--prompt-tokens", str(args.prompt_tokens), "--new-tokens", str(args.new_tokens), "-n", str(n)]
        how = ["--device", args.device, "--kv-type", args.kv_type, "--repeat", "1", "--json"]
        if args.threads:
            how += ["--threads", str(args.threads)]
        model = args.ours or os.path.abspath(args.dir)
        command = [args.idiolect, "bench", "--model", model, *work, *how]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{' '.join(command)} failed with status {done.returncode}:\n{done.stderr[-2000:]}")
        self.told = json.loads(done.stdout[done.stdout.index("{") :])
        row = self.told["rows"][0]
        return {"prefill": row["prefill_tok_s"], "decode": row["decode_tok_s"], "best": row["best_of_n_tok_s"]}

    def describe(self):
        return f"Idiolect: {self.told['model']} on {self.told['device']}, keys and values in {self.told['kv_type']}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", help="the model's folder")
    parser.add_argument("--ours", help="the model that Idiolect loads, where it is not the same folder")
    parser.add_argument("--idiolect", default="target/release/idiolect")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bfloat16", help="what transformers computes in")
    parser.add_argument("--kv-type", default="f16")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-n", default="1,8", help="numbers of candidates")
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--new-tokens", type=int, default=64)
    args = parser.parse_args()
    numbers = [int(n) for n in args.n.split(",")]
    sides = [Theirs(args), Ours(args)]
    rows = {(n, side): [] for n in numbers for side in sides}
    sides[0].generate(numbers[-1], 2)
    for _ in range(args.rounds):
        for n in numbers:
            for side in sides:
                rows[n, side].append(side.run(n))
    for side in sides:
        print(side.describe())
    print(f"prompt of {args.prompt_tokens}, {args.new_tokens} new tokens each, medians of {args.rounds}: theirs | ours | ratio")
    for n in numbers:
        for what in ("prefill", "decode", "best"):
            his, mine = (statistics.median(row[what] for row in rows[n, side]) for side in sides)
            name = f"best of {n}" if what == "best" else f"{what}, n = {n}"
            print(f"{name:16} {his:9.1f} | {mine:9.1f} | {mine / his:5.2f}  tokens/s")


if __name__ == "__main__":
    main()
