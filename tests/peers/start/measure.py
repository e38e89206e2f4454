"""How soon a miner answers, and the memory that it then takes.

    python tests/peers/start/measure.py target/release/idiolect-miner [RUNS]

Starts the miner with its default model and encoder in an empty data directory, on ports of the system's choice, and reads
its resident memory after ten seconds at rest. Models come from the usual cache; the first run fetches them.
"""

import pathlib
import statistics
import subprocess
import sys
import tempfile
import time


def start(program):
    with tempfile.TemporaryDirectory() as folder:
        ready = pathlib.Path(folder, "ready.json")
        args = [program, "--axon.port", "0", "--metrics.addr", "off", "--data-dir", folder, "--ready-file", str(ready)]
        began = time.monotonic()
        miner = subprocess.Popen(args, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while not ready.exists():
                if miner.poll() is not None:
                    sys.exit(f"{program} ended with {miner.returncode}")
                time.sleep(0.002)
            took = time.monotonic() - began
            time.sleep(10)
            status = pathlib.Path(f"/proc/{miner.pid}/status").read_text()
        finally:
            miner.terminate()
            miner.wait()
    resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    return took, int(resident.split()[1]) / 1024


def main():
    program, runs = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 5
    figures = [start(program) for _ in range(runs)]
    times, memory = zip(*figures)
    print(f"start to ready: {min(times):.2f} to {max(times):.2f} s, median {statistics.median(times):.2f} s")
    print(f"resident memory at rest: {min(memory):.0f} to {max(memory):.0f} MiB")


main()
