"""bittensor 6 to 10: the SDK's own dendrite, friendly, and altered by hand."""

import asyncio
import json
import time

import aiohttp

from table import Skip, expect

PROMPT = "Name three rivers of Europe"
UNICODE = "Grüße, «naïve» café — 東京 🚀 ‘it’s’ \"quoted\" back\\slash tab\there \u200b zero, \u00ad soft, \U0001f9d1\u200d\U0001f680 end"


class Http:
    def __init__(self, sdk, miner):
        self.sdk, self.miner = sdk, miner
        self.caller = sdk.keypair("//Bob")
        self.stranger = sdk.keypair("//Charlie")
        self.target = sdk.target(miner.ip, miner.port, miner.hotkey)

    # How the SDK is used.

    async def call(self, synapse, keypair=None, target=None, timeout=12.0):
        dendrite = self.sdk.dendrite(keypair or self.caller)
        try:
            return await dendrite.call(target or self.target, synapse, timeout, deserialize=False)
        finally:
            await close(dendrite)

    async def stream(self, synapse, keypair=None, timeout=12.0):
        """Returns the pieces and the synapse that closes the stream."""
        dendrite = self.sdk.dendrite(keypair or self.caller)
        pieces, last = [], None
        try:
            async for piece in dendrite.call_stream(self.target, synapse, timeout, deserialize=False):
                if isinstance(piece, str):
                    pieces.append(piece)
                else:
                    last = piece
        finally:
            await close(dendrite)
        return pieces, last

    def prompt(self, text=PROMPT, kind=None):
        return (kind or self.sdk.Prompting)(roles=["user"], messages=[text])

    def signed(self, synapse=None, keypair=None, timeout=12.0, target=None):
        """What the SDK would send: path, headers, body."""
        synapse = synapse or self.prompt()
        dendrite = self.sdk.dendrite(keypair or self.caller)
        synapse = dendrite.preprocess_synapse_for_request(target or self.target, synapse, timeout)
        body = synapse.model_dump() if hasattr(synapse, "model_dump") else synapse.dict()
        return type(synapse).__name__, dict(synapse.to_headers()), json.dumps(body)

    def resign(self, headers, keypair=None, **changes):
        """Signs changed headers anew, as a caller with this key could."""
        keypair = keypair or self.caller
        headers = {**headers, "bt_header_dendrite_hotkey": keypair.ss58_address, **changes}
        text = ".".join([headers["bt_header_dendrite_nonce"], headers["bt_header_dendrite_hotkey"], self.miner.hotkey,
                         headers["bt_header_dendrite_uuid"], headers["computed_body_hash"]])
        return {**headers, "bt_header_dendrite_signature": self.sdk.sign(keypair, text)}

    async def send(self, name, headers, body, miner=None):
        async with aiohttp.ClientSession() as session:
            headers = {**headers, "content-type": "application/json"}
            url = f"{(miner or self.miner).url}/{name}"
            async with session.post(url, headers=headers, data=body.encode(), timeout=aiohttp.ClientTimeout(total=20)) as response:
                return response.status, dict(response.headers), await response.text()

    async def refused(self, status, name, headers, body):
        found, reply, text = await self.send(name, headers, body)
        expect(found, status)
        expect(reply.get("bt_header_axon_status_code"), str(status), "status header")
        message = json.loads(text)["message"]
        expect(message, reply.get("bt_header_axon_status_message"), "message")
        assert "completion" not in json.loads(text), "a refusal carries a completion"
        for name in ("bt_header_axon_signature", "bt_header_axon_nonce"):
            assert name not in reply, f"{name} is given to a caller that was refused"
        return message

    # Friendly.

    async def ping(self):
        reply = await self.call(self.sdk.Synapse())
        expect(reply.dendrite.status_code, 200)
        expect(reply.dendrite.status_message, "Success", "message")
        expect(reply.axon.status_code, 200)

    async def plain(self, kind):
        reply = await self.call(self.prompt(kind=kind))
        expect(reply.dendrite.status_code, 200)
        expect(reply.dendrite.status_message, "Success", "message")
        expect(reply.messages, [PROMPT], "messages")
        expect(reply.roles, ["user"], "roles")
        same_words(reply.completion, PROMPT)
        assert float(reply.dendrite.process_time) < 10
        return reply.completion

    async def history(self):
        roles = ["system", "user", "assistant", "user"]
        messages = ["Answer briefly.", "Who wrote Faust?", "Goethe.", "And who wrote Emma?"]
        reply = await self.call(self.sdk.Prompting(roles=roles, messages=messages))
        expect(reply.dendrite.status_code, 200)
        expect((reply.roles, reply.messages), (roles, messages), "echo")
        same_words(reply.completion, messages[-1])

    async def unicode(self):
        reply = await self.call(self.prompt(UNICODE))
        expect(reply.dendrite.status_code, 200)
        expect(reply.messages, [UNICODE], "messages")
        assert "東京" in reply.completion and "🚀" in reply.completion, reply.completion

    async def python_repr(self):
        """Texts whose Python repr is hard: the signed hash is of that repr."""
        texts = ["it's", 'say "no"', "it's \"both\"", "line\nbreak\r\ttab", "\x00\x07\x7f\x85\xa0", "\\ \\n \\'", "", " ",
                 "\u2028\u2029\ufeff\u202e", "\ue000\U000e0001\U0010ffff", "e\u0301 ﬁ ǆ", "{'a': 1} [None, True]"]
        texts = [text for text in texts if text.strip()]
        dendrite = self.sdk.dendrite(self.caller)
        try:
            for text in texts:
                reply = await dendrite.call(self.target, self.prompt(f"{text} word"), 12.0, deserialize=False)
                assert reply.dendrite.status_code == 200, f"{text!r}: {reply.dendrite.status_code} {reply.dendrite.status_message}"
            reply = await dendrite.call(self.target, self.sdk.Prompting(roles=["user"] * len(texts), messages=texts), 12.0, deserialize=False)
            expect(reply.dendrite.status_code, 200, f"status of all together ({reply.dendrite.status_message})")
        finally:
            await close(dendrite)

    async def streamed(self, kind, text=PROMPT):
        extra = {"task_name": "InferenceTask"} if kind is self.sdk.TaskedStreamPromptingSynapse else {}
        pieces, last = await self.stream(kind(roles=["user"], messages=[text], **extra))
        expect(last.dendrite.status_code, 200, f"status ({last.dendrite.status_message})")
        expect(last.dendrite.status_message, "Success", "message")
        expect("".join(pieces), last.completion, "pieces")
        same_words(last.completion, text)
        return f"{len(pieces)} pieces"

    async def streamed_unicode(self):
        # Long enough to come in several pieces; a character cut in two fails to decode.
        text = " ".join(f"東京{i}🚀é" for i in range(400))
        pieces, last = await self.stream(self.prompt(text, self.sdk.StreamPrompting))
        expect(last.dendrite.status_code, 200, f"status ({last.dendrite.status_message})")
        words = last.completion.split()
        # The reply is cut to the miner's length, and its prompt may have had words added; most must be whole words of ours.
        ours = [word for word in words if word in text.split()]
        assert len(ours) > max(50, len(words) // 2), f"{len(ours)} of {len(words)} words: {last.completion[:200]!r}"
        return f"{len(pieces)} pieces"

    async def availability(self):
        ask = self.sdk.AvailabilitySynapse(task_availabilities={"InferenceTask": False, "NoSuchTask": True},
                                           llm_model_availabilities={"no-such-model": True})
        reply = await self.call(ask)
        expect(reply.dendrite.status_code, 200, f"status ({reply.dendrite.status_message})")
        expect(sorted(reply.task_availabilities), ["InferenceTask", "NoSuchTask"], "tasks")
        expect(reply.llm_model_availabilities, {"no-such-model": False}, "models")
        return str(reply.task_availabilities)

    async def concurrent_one(self):
        dendrite = self.sdk.dendrite(self.caller)
        try:
            calls = [dendrite.call(self.target, self.prompt(f"{PROMPT} {i}"), 12.0, deserialize=False) for i in range(50)]
            replies = await asyncio.gather(*calls)
        finally:
            await close(dendrite)
        return self.all_answered(replies)

    async def concurrent_many(self):
        keys = [self.sdk.keypair(f"//caller{i}") for i in range(50)]
        replies = await asyncio.gather(*(self.call(self.prompt(f"{PROMPT} {i}"), keypair=key) for i, key in enumerate(keys)))
        return self.all_answered(replies)

    def all_answered(self, replies):
        bad = {(reply.dendrite.status_code, reply.dendrite.status_message) for reply in replies if reply.dendrite.status_code != 200}
        assert not bad, f"{bad}"
        for i, reply in enumerate(replies):
            assert str(i) in reply.completion.split(), f"reply {i} answers another request: {reply.completion!r}"
        return f"{len(replies)} answered"

    # Wrong, by the SDK's own means.

    async def wrong_target(self):
        other = self.sdk.target(self.miner.ip, self.miner.port, self.stranger.ss58_address)
        reply = await self.call(self.prompt(), target=other)
        expect(int(reply.dendrite.status_code), 401)
        expect(reply.completion, "", "completion")
        return reply.dendrite.status_message

    async def unknown_synapse(self):
        reply = await self.call(self.prompt(kind=self.sdk.NoSuchSynapse))
        expect(int(reply.dendrite.status_code), 404)
        return reply.dendrite.status_message

    async def empty_lists(self):
        # As a reference axon: who asks nothing is answered, with nothing.
        reply = await self.call(self.sdk.Prompting(roles=[], messages=[]))
        expect(int(reply.dendrite.status_code), 200)
        expect(reply.completion, "", "completion")
        return reply.dendrite.status_message

    async def empty_messages(self):
        for roles, messages in ((["user"], [""]), (["user"], ["  "]), (["user"], [])):
            reply = await self.call(self.sdk.Prompting(roles=roles, messages=messages))
            expect(int(reply.dendrite.status_code), 400)
        return reply.dendrite.status_message

    async def unknown_role(self):
        reply = await self.call(self.sdk.Prompting(roles=["wizard"], messages=["hi"]))
        expect(int(reply.dendrite.status_code), 400)
        return reply.dendrite.status_message

    async def too_large(self):
        reply = await self.call(self.prompt("word " * 3_000_000))
        # The connection may be closed on the sender before it has read the answer.
        assert int(reply.dendrite.status_code) in (413, 422, 500, 503), reply.dendrite.status_code
        expect(reply.completion, "", "completion")
        return f"{reply.dendrite.status_code} {reply.dendrite.status_message}"

    async def impatient(self):
        """A client that gives up at once, and another that is served right after."""
        reply = await self.call(self.prompt(), timeout=0.001)
        assert int(reply.dendrite.status_code) in (408, 200), reply.dendrite.status_code
        return (await self.plain(self.sdk.Prompting)) and f"{reply.dendrite.status_code}"

    async def blacklisted(self):
        reply = await self.call(self.prompt(), keypair=self.stranger)
        expect(int(reply.dendrite.status_code), 403)
        expect(reply.completion, "", "completion")
        reply_ping = await self.call(self.sdk.Synapse(), keypair=self.stranger)
        expect(int(reply_ping.dendrite.status_code), 403, "status of a ping")
        return reply.dendrite.status_message

    async def blacklisted_stream(self):
        _, last = await self.stream(self.prompt(kind=self.sdk.StreamPrompting), keypair=self.stranger)
        expect(int(last.dendrite.status_code), 403)
        return last.dendrite.status_message

    # Altered by hand.

    async def tampered_body(self):
        name, headers, body = self.signed()
        return await self.refused(401, name, headers, body.replace("rivers", "queens"))

    async def tampered_body_and_hash(self):
        name, headers, body = self.signed()
        _, other, changed = self.signed(self.prompt("Name three queens"))
        return await self.refused(401, name, {**headers, "computed_body_hash": other["computed_body_hash"]}, changed)

    async def replayed(self):
        name, headers, body = self.signed()
        status, _, _ = await self.send(name, headers, body)
        expect(status, 200, "first status")
        return await self.refused(401, name, headers, body)

    async def no_signature(self):
        messages = []
        for value in (None, "", "0x", "0x" + "00" * 64, "nonsense"):
            name, headers, body = self.signed()
            del headers["bt_header_dendrite_signature"]
            if value is not None:
                headers["bt_header_dendrite_signature"] = value
            messages.append(await self.refused_as_unproven(name, headers, body))
        return " | ".join(dict.fromkeys(messages))

    async def refused_as_unproven(self, name, headers, body):
        status, _, _ = await self.send(name, headers, body)
        assert status in (400, 401), f"status is {status}"
        return await self.refused(status, name, headers, body)

    async def other_key(self):
        name, headers, body = self.signed(keypair=self.stranger)
        return await self.refused(401, name, {**headers, "bt_header_dendrite_hotkey": self.caller.ss58_address}, body)

    async def stale(self):
        name, headers, body = self.signed()
        old = str(time.time_ns() - 60 * 10**9)
        return await self.refused(401, name, self.resign(headers, bt_header_dendrite_nonce=old), body)

    async def stale_with_raised_timeout(self):
        name, headers, body = self.signed()
        old = str(time.time_ns() - 3600 * 10**9)
        return await self.refused(401, name, self.resign(headers, bt_header_dendrite_nonce=old, timeout="100000.0"), body)

    async def stale_with_lowered_version(self):
        name, headers, body = self.signed()
        old = str(time.time_ns() - 3600 * 10**9)
        return await self.refused(401, name, self.resign(headers, bt_header_dendrite_nonce=old, bt_header_dendrite_version="694"), body)

    async def future(self):
        name, headers, body = self.signed()
        later = str(time.time_ns() + 3600 * 10**9)
        return await self.refused(401, name, self.resign(headers, bt_header_dendrite_nonce=later), body)

    async def bad_nonces(self):
        for nonce in ("", "x", "-1", "1e18", "9" * 400, "１２３"):
            name, headers, body = self.signed()
            try:
                changed = self.resign(headers, bt_header_dendrite_nonce=nonce)
                status, _, _ = await self.send(name, changed, body)
            except UnicodeEncodeError:
                continue
            # To clients with monotonic nonces any whole number is one.
            allowed = (200, 400, 401, 431) if self.sdk.monotonic_nonces and nonce == "-1" else (400, 401, 431)
            assert status in allowed, f"nonce {nonce[:20]!r}: {status}"

    async def bad_bodies(self):
        cases = {"": 400, "{": 400, "[]": 400, "null": 400, '{"messages": "text"}': 400, "\ud83d".encode("utf-8", "surrogatepass").decode("latin-1"): 400}
        for body in cases:
            name, headers, _ = self.signed()
            status, _, _ = await self.send(name, headers, body)
            assert status in (400, 401, 422), f"body {body!r}: {status}"

    async def clock_timeouts(self):
        """Negative, huge and odd timeouts neither crash nor hang."""
        for timeout in ("-5.0", "1e308", "inf", "nan", "x", ""):
            name, headers, body = self.signed()
            began = time.monotonic()
            status, _, _ = await self.send(name, {**headers, "timeout": timeout}, body)
            assert status in (200, 400, 401, 408), f"timeout {timeout!r}: {status}"
            assert time.monotonic() - began < 15, timeout

    async def health_of_the_rest(self):
        """After all that, a good request is answered."""
        return await self.plain(self.sdk.Prompting)


async def close(dendrite):
    closing = getattr(dendrite, "aclose_session", None)
    if closing:
        await closing()
    elif getattr(dendrite, "_session", None):
        await dendrite._session.close()


def same_words(completion, prompt):
    """The echo backend says the prompt again, in some order, perhaps among other words."""
    assert completion.strip(), "the completion is empty"
    said = completion.lower()
    missing = [word for word in prompt.lower().split() if word.strip(".,?") not in said]
    assert len(missing) <= len(prompt.split()) // 2, f"{completion!r} does not echo {prompt!r}"


def run(table, sdk, open_miner, strict_miner):
    """`open_miner` serves anyone, `strict_miner` only //Bob."""
    http, strict = Http(sdk, open_miner), Http(sdk, strict_miner)
    table.run("http: ping", http.ping)
    table.run("http: Prompting", http.plain, sdk.Prompting)
    table.run("http: PromptingSynapse", http.plain, sdk.PromptingSynapse)
    table.run("http: history of four turns", http.history)
    table.run("http: unicode", http.unicode)
    table.run("http: hard Python texts", http.python_repr)
    table.run("http: StreamPrompting", http.streamed, sdk.StreamPrompting)
    table.run("http: StreamPromptingSynapse", http.streamed, sdk.StreamPromptingSynapse)
    table.run("http: StreamPromptingSynapse with a task", http.streamed, sdk.TaskedStreamPromptingSynapse)
    table.run("http: long unicode stream", http.streamed_unicode)
    table.run("http: AvailabilitySynapse", http.availability)
    table.run("http: 50 at once from one dendrite", http.concurrent_one)
    table.run("http: 50 at once from 50 keys", http.concurrent_many)
    table.run("http: listed key is served", strict.plain, sdk.Prompting)
    table.run("http: stranger is refused", strict.blacklisted)
    table.run("http: stranger's stream is refused", strict.blacklisted_stream)
    table.run("http: addressed to another key", http.wrong_target)
    table.run("http: unknown synapse", http.unknown_synapse)
    table.run("http: empty lists", http.empty_lists)
    table.run("http: no text", http.empty_messages)
    table.run("http: unknown role", http.unknown_role)
    table.run("http: 15 MB prompt", http.too_large)
    table.run("http: client that gives up", http.impatient)
    table.run("http: messages changed after signing", http.tampered_body)
    table.run("http: messages and hash changed", http.tampered_body_and_hash)
    table.run("http: the same request again", http.replayed)
    table.run("http: no signature", http.no_signature)
    table.run("http: signed by another key", http.other_key)
    if sdk.monotonic_nonces:
        def skip():
            raise Skip("this SDK's nonces are no clock readings")
        table.run("http: stale nonces", skip)
    else:
        table.run("http: nonce of a minute ago", http.stale)
        table.run("http: nonce of an hour ago, timeout header raised", http.stale_with_raised_timeout)
        table.run("http: nonce of an hour ago, version header lowered", http.stale_with_lowered_version)
        table.run("http: nonce of the next hour", http.future)
    table.run("http: nonces that are none", http.bad_nonces)
    table.run("http: bodies that are none", http.bad_bodies)
    table.run("http: odd timeouts", http.clock_timeouts)
    table.run("http: still there", http.health_of_the_rest)


def run_restart(table, sdk, miner):
    """A captured request is no use after a restart with the same data."""
    http = Http(sdk, miner)
    kept = {}

    async def capture():
        name, headers, body = http.signed()
        status, _, _ = await http.send(name, headers, body)
        expect(status, 200)
        # Let the store write what it remembers.
        await asyncio.sleep(0.5)
        kept.update(name=name, headers=headers, body=body)

    def restart():
        code = miner.stop()
        expect(code, 0, "exit code")
        miner.start()
        return f"ready after {miner.start_seconds:.2f} s"

    async def again():
        status, _, _ = await http.send(**kept)
        expect(status, 401)
        http.target = sdk.target(miner.ip, miner.port, miner.hotkey)
        return await http.plain(sdk.Prompting)

    table.run("restart: a request is captured", capture)
    table.run("restart: SIGTERM ends it with code 0, it starts again", restart)
    table.run("restart: the captured request is refused, a new one served", again)


def run_rated(table, sdk, miner, limit):
    """A key that asks too often is told so, and other keys are not."""
    http = Http(sdk, miner)

    async def rated():
        codes = []
        for _ in range(limit + 2):
            reply = await http.call(http.prompt())
            codes.append(int(reply.dendrite.status_code))
        expect(codes, [200] * limit + [429] * 2, "codes")
        expect(reply.completion, "", "completion")
        return reply.dendrite.status_message

    async def others():
        expect((await http.call(http.prompt(), keypair=http.stranger)).dendrite.status_code, 200)

    async def forged():
        """Requests that only claim a key do not use up its allowance."""
        for _ in range(limit * 2):
            name, headers, body = http.signed(keypair=sdk.keypair("//Eve"))
            await http.send(name, {**headers, "bt_header_dendrite_hotkey": sdk.keypair("//Dave").ss58_address}, body)
        expect((await http.call(http.prompt(), keypair=sdk.keypair("//Dave"))).dendrite.status_code, 200)

    table.run("rate: too many requests of one key", rated)
    table.run("rate: another key is served", others)
    table.run("rate: forged requests do not count", forged)


def run_without_legacy(table, sdk, miner):
    """Clients with monotonic nonces are off by default."""
    http = Http(sdk, miner)

    async def refused():
        reply = await http.call(http.prompt())
        expect(int(reply.dendrite.status_code), 401)
        return reply.dendrite.status_message

    table.run("http: legacy client without the legacy switch", refused)
