"""Measures ONNX Runtime on a sentence encoder: milliseconds a text, by length and number of texts.

    measure.py MODEL.onnx [THREADS] [TOKENS:TEXTS ...]

Needs onnxruntime and numpy. Tokenising is not included. A row is the median of five rounds, as in
`cargo run --release -p idiolect-backend-candle --example encode`.
"""

import statistics
import sys
import time

import numpy as np
import onnxruntime


def main(model, threads=1, *cases):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(threads)
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    print(f"onnxruntime {onnxruntime.__version__}")
    random = np.random.default_rng(1)
    for case in cases or ("30:1", "30:8", "30:32", "200:1", "200:8", "200:32"):
        tokens, texts = map(int, case.split(":"))
        numbers = random.integers(1000, 30000, (texts, tokens))
        inputs = {"input_ids": numbers, "attention_mask": np.ones_like(numbers)}
        session.run(None, inputs)
        calls = max(1, 4800 // (tokens * texts))
        walls, cpus = [], []
        for _ in range(5):
            wall, cpu = time.perf_counter(), time.process_time()
            for _ in range(calls):
                session.run(None, inputs)
            walls.append((time.perf_counter() - wall) * 1000 / calls / texts)
            cpus.append((time.process_time() - cpu) * 1000 / calls / texts)
        wall, cpu = statistics.median(walls), statistics.median(cpus)
        print(f"{tokens:4} tokens, {texts:2} texts: {wall:6.2f} ms wall {cpu:6.2f} ms cpu a text", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
