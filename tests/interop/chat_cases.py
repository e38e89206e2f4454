"""The OpenAI-shaped endpoint: Epistula v2 of the later validators, and bittensor 11's signed requests."""

import asyncio
import hashlib
import json
import math
import time
import uuid

import aiohttp

from http_cases import PROMPT, UNICODE, same_words
from table import Skip, expect


class Chat:
    def __init__(self, sdk, miner):
        self.sdk, self.miner = sdk, miner
        self.caller, self.stranger = sdk.keypair("//Bob"), sdk.keypair("//Charlie")

    def body(self, text=PROMPT, **fields):
        return {"messages": [{"role": "user", "content": text}], "model": None, "stream": True, "seed": 42, **fields}

    def epistula(self, body, keypair=None, signed_for=None, now_ms=None):
        keypair = keypair or self.caller
        signed_for = signed_for or self.miner.hotkey
        now_ms = now_ms or round(time.time() * 1000)
        call = str(uuid.uuid4())
        raw = json.dumps(body).encode()
        interval = math.ceil(now_ms / 1e4) * 1e4
        headers = {
            "Content-Type": "application/json", "Authorization": "Bearer Apex", "X-Client-Timeout": "12",
            "Epistula-Version": "2", "Epistula-Timestamp": str(now_ms), "Epistula-Uuid": call,
            "Epistula-Signed-By": keypair.ss58_address, "Epistula-Signed-For": signed_for,
            "Epistula-Request-Signature": self.sdk.sign(keypair, f"{hashlib.sha256(raw).hexdigest()}.{call}.{now_ms}.{signed_for}"),
        }
        for i, offset in enumerate((-1, 0, 1)):
            headers[f"Epistula-Secret-Signature-{i}"] = self.sdk.sign(keypair, f"{interval + offset}.{signed_for}")
        # Every other field of the body travels as a header too.
        for name in ("task", "seed", "sampling_parameters"):
            if name in body:
                headers[name] = str(body[name])
        return headers, raw

    def btauth(self, body, keypair=None, receiver=None, nonce=None, target="/v1/chat/completions"):
        keypair = keypair or self.caller
        receiver = receiver or self.miner.hotkey
        nonce = str(nonce or time.time_ns())
        raw = json.dumps(body).encode()
        lines = ["btauth/1", "sr25519", "POST", target, hashlib.sha256(raw).hexdigest(), nonce, keypair.ss58_address, receiver]
        signature = self.sdk.sign(keypair, "\n".join(lines))
        headers = {"Content-Type": "application/json", "X-Bittensor-Version": "1", "X-Bittensor-Hotkey": keypair.ss58_address,
                   "X-Bittensor-Receiver": receiver, "X-Bittensor-Nonce": nonce, "X-Bittensor-Signature": signature}
        return headers, raw

    async def post(self, headers, raw, path="/v1/chat/completions"):
        async with aiohttp.ClientSession() as session:
            async with session.post(self.miner.url + path, headers=headers, data=raw, timeout=aiohttp.ClientTimeout(total=20)) as reply:
                return reply.status, reply.headers.get("content-type", ""), await reply.text()

    async def refused(self, statuses, headers, raw):
        status, _, text = await self.post(headers, raw)
        assert status in statuses, f"status is {status}, expected one of {statuses}: {text[:200]}"
        assert '"delta"' not in text and '"choices"' not in text, "a refusal carries a completion"
        return f"{status} {text[:100]}"

    # Friendly.

    async def streamed(self, sign, text=PROMPT, **fields):
        status, kind, reply = await self.post(*sign(self.body(text, **fields)))
        expect(status, 200, f"status ({reply[:200]})")
        assert kind.startswith("text/event-stream"), kind
        chunks, completion = read_events(reply)
        expect(chunks[-1]["choices"][0]["finish_reason"], "stop", "finish reason")
        same_words(completion, text)
        return chunks, completion

    async def plain_stream(self, sign):
        chunks, _ = await self.streamed(sign)
        return f"{len(chunks)} chunks"

    async def unicode(self, sign):
        _, completion = await self.streamed(sign, UNICODE)
        assert "東京" in completion and "🚀" in completion

    async def whole(self, sign):
        status, kind, reply = await self.post(*sign(self.body(stream=False)))
        expect(status, 200, f"status ({reply[:200]})")
        assert kind.startswith("application/json"), kind
        same_words(json.loads(reply)["choices"][0]["message"]["content"], PROMPT)

    async def inference(self):
        """A dictated sampling: the same seed gives the same text, with log-probabilities of that text."""
        sampling = {"temperature": 0.7, "top_p": 0.95, "top_k": 50, "max_new_tokens": 32, "do_sample": True}
        fields = {"task": "InferenceTask", "sampling_parameters": sampling, "logprobs": True, "top_logprobs": 3}
        chunks, first = await self.streamed(self.epistula, **fields)
        _, second = await self.streamed(self.epistula, **fields)
        expect(second, first, "second completion")
        with_logprobs = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0].get("logprobs")]
        assert with_logprobs, "no log-probabilities"
        for choice in with_logprobs:
            for entry in choice["logprobs"]["content"]:
                for top in entry["top_logprobs"]:
                    assert isinstance(top["token"], str) and top["logprob"] <= 0, top
        return f"{len(with_logprobs)} of {len(chunks)} chunks with log-probabilities"

    async def availability(self):
        ask = {"task_availabilities": {"InferenceTask": False, "NoSuchTask": True}, "llm_model_availabilities": {"no-such-model": True}}
        status, _, reply = await self.post({"Content-Type": "application/json"}, json.dumps(ask).encode(), "/availability")
        expect(status, 200, f"status ({reply[:200]})")
        answer = json.loads(reply)
        expect(sorted(answer["task_availabilities"]), ["InferenceTask", "NoSuchTask"], "tasks")
        expect(answer["llm_model_availabilities"], {"no-such-model": False}, "models")
        return reply

    async def concurrent(self, sign):
        replies = await asyncio.gather(*(self.streamed(sign, f"{PROMPT} {i}") for i in range(50)))
        for i, (_, completion) in enumerate(replies):
            assert str(i) in completion.split(), completion
        return f"{len(replies)} answered"

    # Wrong.

    async def unsigned(self):
        return await self.refused((400, 401), {"Content-Type": "application/json"}, json.dumps(self.body()).encode())

    async def body_changed(self, sign):
        headers, raw = sign(self.body())
        return await self.refused((400, 401), headers, raw + b" ")

    async def other_receiver(self, sign):
        other = self.stranger.ss58_address
        named = {"signed_for": other} if sign == self.epistula else {"receiver": other}
        return await self.refused((400, 401), *sign(self.body(), **named))

    async def replayed(self, sign):
        headers, raw = sign(self.body())
        status, _, reply = await self.post(headers, raw)
        expect(status, 200, f"first status ({reply[:200]})")
        return await self.refused((401,), headers, raw)

    async def stale(self, sign):
        when = {"now_ms": round(time.time() * 1000) - 30_000} if sign == self.epistula else {"nonce": time.time_ns() - 30 * 10**9}
        return await self.refused((400, 401), *sign(self.body(), **when))

    async def future(self, sign):
        when = {"now_ms": round(time.time() * 1000) + 3_600_000} if sign == self.epistula else {"nonce": time.time_ns() + 3600 * 10**9}
        return await self.refused((400, 401), *sign(self.body(), **when))

    async def stranger_refused(self, sign):
        return await self.refused((403,), *sign(self.body(), keypair=self.stranger))

    async def bad_bodies(self, sign):
        for body in ({}, [], {"messages": []}, {"messages": "x"}, {"messages": [{"role": "wizard", "content": "x"}]}, {"messages": [{"role": "user"}]}):
            status, _, reply = await self.post(*sign(body))
            assert status in (400, 422), f"{body}: {status} {reply[:100]}"

    async def real_http_auth(self):
        """bittensor 11's own signer."""
        try:
            from bittensor import http_auth
        except ImportError as error:
            raise Skip("this SDK does not sign plain HTTP requests") from error
        raw = json.dumps(self.body()).encode()
        headers = http_auth.sign(self.caller, method="POST", path="/v1/chat/completions", body=raw, receiver_ss58=self.miner.hotkey)
        status, _, reply = await self.post({"Content-Type": "application/json", **headers}, raw)
        expect(status, 200, f"status ({reply[:200]})")
        same_words(read_events(reply)[1], PROMPT)


def read_events(text):
    """The chunks of a stream and its text; the end marker must be there."""
    events = [line[len("data: "):] for line in text.split("\n\n") if line.startswith("data: ")]
    expect(events[-1], "[DONE]", "last event")
    chunks = [json.loads(event) for event in events[:-1]]
    completion = "".join(chunk["choices"][0].get("delta", {}).get("content") or "" for chunk in chunks)
    return chunks, completion


def run(table, sdk, open_miner, strict_miner):
    chat, strict = Chat(sdk, open_miner), Chat(sdk, strict_miner)
    for name, sign, strict_sign in (("epistula", chat.epistula, strict.epistula), ("btauth", chat.btauth, strict.btauth)):
        table.run(f"{name}: stream", chat.plain_stream, sign)
        table.run(f"{name}: unicode stream", chat.unicode, sign)
        table.run(f"{name}: whole reply", chat.whole, sign)
        table.run(f"{name}: 50 at once", chat.concurrent, sign)
        table.run(f"{name}: body changed after signing", chat.body_changed, sign)
        table.run(f"{name}: addressed to another key", chat.other_receiver, sign)
        table.run(f"{name}: the same request again", chat.replayed, sign)
        table.run(f"{name}: half a minute old", chat.stale, sign)
        table.run(f"{name}: of the next hour", chat.future, sign)
        table.run(f"{name}: stranger is refused", strict.stranger_refused, strict_sign)
        table.run(f"{name}: bad bodies", chat.bad_bodies, sign)
    table.run("epistula: dictated sampling", chat.inference)
    table.run("epistula: availability", chat.availability)
    table.run("chat: no signature at all", chat.unsigned)
    table.run("btauth: the SDK's own signer", chat.real_http_auth)
