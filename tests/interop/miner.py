"""Starts and stops miners."""

import json
import os
import signal
import subprocess
import tempfile
import time


class Miner:
    """A miner of ours as a process, on a free port of the loopback."""

    def __init__(self, path, *flags, data=None, log=None):
        self.path, self.flags = path, flags
        self.data = data or tempfile.mkdtemp(prefix="idiolect-interop-")
        self.log = log
        self.process = None

    def start(self, timeout=60):
        ready = os.path.join(self.data, "ready.json")
        if os.path.exists(ready):
            os.remove(ready)
        command = [self.path, "--backend", "echo", "--network", "none", "--hotkey-uri", "//Alice", "--axon.port", "0",
                   "--metrics.addr", "off", "--data-dir", self.data, "--ready-file", ready, *self.flags]
        output = open(self.log, "ab") if self.log else subprocess.DEVNULL
        began = time.monotonic()
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        while not os.path.exists(ready):
            if self.process.poll() is not None:
                raise RuntimeError(f"the miner ended with code {self.process.returncode}: {' '.join(command)}; see {self.log}")
            if time.monotonic() - began > timeout:
                self.process.kill()
                raise RuntimeError(f"the miner was not ready after {timeout} s; see {self.log}")
            time.sleep(0.02)
        self.start_seconds = time.monotonic() - began
        with open(ready) as file:
            about = json.load(file)
        self.hotkey = about["hotkey"]
        self.ip, port = about["axon"].rsplit(":", 1)
        self.port = int(port)
        return self

    def stop(self, timeout=15):
        """Ends it as an operator would and returns its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)

    def kill(self):
        if self.process and self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    @property
    def url(self):
        return f"http://{self.ip}:{self.port}"
