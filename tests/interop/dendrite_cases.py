"""Our dendrite (`idiolect probe`) against a real axon of the SDK."""

import asyncio
import json
import os
import socket
import subprocess
import sys
import time

from axon import SLOW
from table import Skip, expect

HERE = os.path.dirname(os.path.abspath(__file__))
TEXT = "Grüße aus 東京 🚀 ‘it’s’ \"quoted\" back\\slash tab\there \u200b zero"


class Axon:
    """The SDK's axon in a process of its own, since it takes over threads and signals."""

    def __init__(self, version, work):
        self.log = os.path.join(work, "axon.log")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        ready = os.path.join(work, "axon.ready")
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen([sys.executable, os.path.join(HERE, "axon.py"), version, str(self.port), ready],
                                            stdin=subprocess.PIPE, stdout=log, stderr=log)
        began = time.monotonic()
        while not os.path.exists(ready):
            if self.process.poll() is not None or time.monotonic() - began > 60:
                self.kill()
                raise RuntimeError(f"the real axon did not start; see {self.log}")
            time.sleep(0.05)
        with open(ready) as file:
            self.hotkey = file.read()

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Probe:
    def __init__(self, program, axon, work):
        self.program, self.axon, self.work = program, axon, work

    async def ask(self, via, text=TEXT, hotkey=None, uri="//Bob", timeout="10s", expect_ok=True, **more):
        flags = [flag for name, value in more.items() for flag in (f"--{name}", value)]
        process = await asyncio.create_subprocess_exec(
            self.program, "probe", f"127.0.0.1:{self.axon.port}", "--hotkey", hotkey or self.axon.hotkey, "--via", via, "--message", text,
            "--timeout", timeout, "--hotkey-uri", uri, "--data-dir", self.work, "--json", *flags,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        out, err = await asyncio.wait_for(process.communicate(), 40)
        out, err = out.decode(), err.decode()
        assert out.strip(), f"no answer on standard output: {err}"
        reply = json.loads(out)
        expect((process.returncode == 0, reply["ok"]), (expect_ok, expect_ok), f"success ({out} {err})")
        return reply, err

    async def friendly(self, via, text=TEXT):
        reply, _ = await self.ask(via, text)
        expect(reply["status"], 200)
        expect(reply["completion"], "echo: " + text, "completion")
        return f"{reply['pieces']} pieces, {reply['elapsed_ms']:.0f} ms"

    async def streamed_in_pieces(self):
        text = " ".join(f"東京{i}🚀é" for i in range(300))
        reply, _ = await self.ask("stream", text)
        expect(reply["completion"], "echo: " + text, "completion")
        assert reply["pieces"] > 1, "came in one piece"
        return f"{reply['pieces']} pieces"

    async def refused(self, via, status, **how):
        reply, err = await self.ask(via, expect_ok=False, **how)
        expect(reply["status"], status, f"status ({reply['error']})")
        assert "completion" not in reply, "a refusal carries a completion"
        return reply["error"][:100]

    async def too_late(self):
        began = time.monotonic()
        reply, _ = await self.ask("http", SLOW, timeout="1s", expect_ok=False)
        assert time.monotonic() - began < 3, "did not give up in time"
        return reply["error"][:100]

    async def many(self):
        replies = await asyncio.gather(*(self.ask("http", f"question {i}") for i in range(8)))
        expect([reply["completion"] for reply, _ in replies], [f"echo: question {i}" for i in range(8)], "completions")


def start(sdk, program, work):
    """Starts the SDK's axon, or says why it cannot be asked."""
    if not sdk.has_dendrite:
        raise Skip("this SDK has no axon")
    if sdk.monotonic_nonces:
        raise Skip("our dendrite speaks to axons of 7.2 and later")
    assert os.access(program, os.X_OK), f"no tool at {program}: build it with 'cargo build --bin idiolect' or name it with --tool"
    return Axon(sdk.version, work)


def run(table, sdk, program, work):
    axon = None

    def started():
        nonlocal axon
        axon = start(sdk, program, work)

    table.run("our dendrite: a real axon listens", started)
    if axon is None:
        return
    try:
        probe = Probe(program, axon, work)
        stranger = sdk.keypair("//Charlie").ss58_address
        def answered(via, case, *arguments):
            if via == "stream" and sdk.numbers < (7, 3):
                raise Skip("this SDK's axon fails at its own streamed answers")
            return case(*arguments)

        for via in ("http", "stream"):
            table.run(f"our dendrite {via}: a question", answered, via, probe.friendly, via)
            table.run(f"our dendrite {via}: one plain word", answered, via, probe.friendly, via, "hello")
            table.run(f"our dendrite {via}: the wrong hotkey", lambda via=via: probe.refused(via, 401, hotkey=stranger))
            table.run(f"our dendrite {via}: a caller on its blacklist", lambda via=via: probe.refused(via, 403, uri="//Charlie"))
            table.run(f"our dendrite {via}: a synapse it does not have", lambda via=via: probe.refused(via, 404, synapse="NoSuchSynapse"))
        table.run("our dendrite stream: long, cut within characters", answered, "stream", probe.streamed_in_pieces)
        table.run("our dendrite http: the axon is too slow", probe.too_late)
        table.run("our dendrite http: eight at a time", probe.many)
    finally:
        axon.kill()
