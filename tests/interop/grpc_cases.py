"""bittensor 5.x: the gRPC service, by Python's own gRPC stack and the project's contract."""

import importlib
import json
import os
import sys
import tempfile
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import grpc

from http_cases import PROMPT, UNICODE, same_words
from table import expect

VERSION = 521


def generate(proto_folder):
    """Compiles the contract with protoc from the virtual environment."""
    from grpc_tools import protoc

    out = tempfile.mkdtemp(prefix="idiolect-proto-")
    names = [name for name in os.listdir(proto_folder) if name.endswith(".proto")]
    wanted = [name for name in names if "service TextPrompting " in open(os.path.join(proto_folder, name)).read()]
    expect(len(wanted), 1, "contracts with the service")
    include = os.path.join(os.path.dirname(importlib.import_module("grpc_tools").__file__), "_proto")
    arguments = ["protoc", f"-I{proto_folder}", f"-I{include}", f"--python_out={out}", f"--grpc_python_out={out}", wanted[0]]
    expect(protoc.main(arguments), 0, "protoc")
    sys.path.insert(0, out)
    stem = wanted[0][: -len(".proto")]
    return importlib.import_module(f"{stem}_pb2"), importlib.import_module(f"{stem}_pb2_grpc")


class Grpc:
    def __init__(self, sdk, miner, contract):
        self.pb, service = contract
        self.sdk, self.miner = sdk, miner
        self.caller, self.stranger = sdk.keypair("//Bob"), sdk.keypair("//Charlie")
        self.session = str(uuid.uuid1())
        self.channel = grpc.insecure_channel(f"{miner.ip}:{miner.port}")
        self.stub = service.TextPromptingStub(self.channel)

    def metadata(self, keypair=None, receiver=None, nonce=None, session=None, version=VERSION):
        keypair = keypair or self.caller
        nonce = time.monotonic_ns() if nonce is None else nonce
        session = session or self.session
        text = f"{nonce}.{keypair.ss58_address}.{receiver or self.miner.hotkey}.{session}"
        signature = self.sdk.sign(keypair, text)
        return [("rpc-auth-header", "Bittensor"), ("bittensor-version", str(version)),
                ("bittensor-signature", f"{nonce}.{keypair.ss58_address}.{signature}.{session}")]

    def messages(self, *texts):
        return [json.dumps({"role": "user", "content": text}) for text in texts]

    def request(self, *texts, timeout=12):
        texts = texts or (PROMPT,)
        return self.pb.ForwardTextPromptingRequest(version=VERSION, hotkey="unsigned", messages=self.messages(*texts), timeout=timeout)

    def forward(self, metadata=None, request=None, timeout=12):
        return self.stub.Forward(request or self.request(), metadata=metadata or self.metadata(), timeout=timeout)

    def fails(self, code, **call):
        try:
            reply = self.forward(**call)
        except grpc.RpcError as error:
            expect(error.code(), code, f"code ({error.details()})")
            return error.details()
        raise AssertionError(f"answered with return code {reply.return_code}: {reply.return_message}")

    # Friendly.

    def plain(self):
        reply = self.forward()
        expect((reply.return_code, reply.return_message), (self.pb.ReturnCode.Success, "Success"), "result")
        same_words(reply.response, PROMPT)
        return reply.response

    def unicode(self):
        reply = self.forward(request=self.request(UNICODE))
        expect(reply.return_code, self.pb.ReturnCode.Success, "return code")
        assert "東京" in reply.response and "🚀" in reply.response

    def history(self):
        turns = [("system", "Answer briefly."), ("user", "Who wrote Faust?"), ("assistant", "Goethe."), ("user", "And Emma?")]
        messages = [json.dumps({"role": role, "content": text}) for role, text in turns]
        request = self.pb.ForwardTextPromptingRequest(version=VERSION, messages=messages, timeout=12)
        expect(self.forward(request=request).return_code, self.pb.ReturnCode.Success, "return code")

    def multi(self):
        request = self.pb.MultiForwardTextPromptingRequest(version=VERSION, messages=self.messages(PROMPT), timeout=12)
        reply = self.stub.MultiForward(request, metadata=self.metadata(), timeout=12)
        expect(reply.return_code, self.pb.ReturnCode.Success, "return code")
        assert reply.multi_completions, "no completions"
        for completion in reply.multi_completions:
            same_words(completion, PROMPT)
        return f"{len(reply.multi_completions)} completions"

    def backward(self):
        answer = self.forward()
        request = self.pb.BackwardTextPromptingRequest(
            version=VERSION, rewards=[0.75], messages=self.messages(PROMPT), response=answer.response, timeout=12)
        reply = self.stub.Backward(request, metadata=self.metadata(), timeout=12)
        expect(reply.return_code, self.pb.ReturnCode.Success, f"return code ({reply.return_message})")

    def concurrent(self):
        # One session whose nonces arrive out of order: all are good, none has been seen.
        nonces = [time.monotonic_ns() + i for i in range(50)]
        with ThreadPoolExecutor(50) as pool:
            replies = list(pool.map(lambda nonce: self.forward(metadata=self.metadata(nonce=nonce)), nonces))
        codes = {reply.return_code for reply in replies}
        expect(codes, {self.pb.ReturnCode.Success}, "return codes")
        return f"{len(replies)} answered"

    def health(self):
        check = self.channel.unary_unary("/grpc.health.v1.Health/Check")
        expect(check(b"", timeout=5), b"\x08\x01", "health")

    def reflection(self):
        # list_services is field 7 of the request; the names come back as text inside the answer.
        info = self.channel.stream_stream("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
        answer = next(iter(info(iter([b"\x3a\x00"]), timeout=5)))
        assert b"TextPrompting" in answer, answer

    # Wrong.

    def no_signature(self):
        details = [self.fails(grpc.StatusCode.UNAUTHENTICATED, metadata=[("rpc-auth-header", "Bittensor"), ("bittensor-version", str(VERSION))])]
        good = dict(self.metadata())["bittensor-signature"]
        nonce, hotkey, signature, session = good.split(".")
        for bad in ("", "nonsense", "...", f"{nonce}.{hotkey}..{session}", f"{nonce}.{hotkey}.0x{'00' * 64}.{session}",
                    f"x.{hotkey}.{signature}.{session}", good + ".more"):
            metadata = [("rpc-auth-header", "Bittensor"), ("bittensor-version", str(VERSION)), ("bittensor-signature", bad)]
            details.append(self.fails(grpc.StatusCode.UNAUTHENTICATED, metadata=metadata))
        return " | ".join(dict.fromkeys(details))

    def wrong_receiver(self):
        return self.fails(grpc.StatusCode.UNAUTHENTICATED, metadata=self.metadata(receiver=self.stranger.ss58_address))

    def replayed(self):
        metadata = self.metadata()
        expect(self.forward(metadata=metadata).return_code, self.pb.ReturnCode.Success, "return code")
        return self.fails(grpc.StatusCode.UNAUTHENTICATED, metadata=metadata)

    def old_version(self):
        return self.fails(grpc.StatusCode.UNAUTHENTICATED, metadata=self.metadata(version=100))

    def blacklisted(self):
        reply = self.forward(metadata=self.metadata(keypair=self.stranger))
        expect((reply.return_code, reply.response), (self.pb.ReturnCode.Blacklisted, ""), "result")
        return reply.return_message

    def no_time(self):
        reply = self.forward(request=self.request(timeout=0))
        expect((reply.return_code, reply.response), (self.pb.ReturnCode.Timeout, ""), "result")
        return reply.return_message

    def odd_timeouts(self):
        for timeout in (-1.0, float("inf"), float("nan"), 1e30):
            began = time.monotonic()
            reply = self.forward(request=self.request(timeout=timeout))
            assert time.monotonic() - began < 12, timeout
            assert reply.return_code in (self.pb.ReturnCode.Success, self.pb.ReturnCode.Timeout, self.pb.ReturnCode.InvalidRequest), (timeout, reply.return_code)

    def bad_messages(self):
        for message in ("", "{", "[]", '"text"', '{"role": "wizard", "content": "x"}', '{"content": "x"}', '{"role": "user", "content": 5}'):
            request = self.pb.ForwardTextPromptingRequest(version=VERSION, messages=[message], timeout=12)
            try:
                reply = self.forward(request=request)
            except grpc.RpcError as error:
                assert error.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNKNOWN), error.code()
            else:
                assert reply.return_code not in (self.pb.ReturnCode.Success, self.pb.ReturnCode.NoReturn), message
                expect(reply.response, "", "response")
        request = self.pb.ForwardTextPromptingRequest(version=VERSION, messages=[], timeout=12)
        try:
            assert self.forward(request=request).return_code != self.pb.ReturnCode.Success
        except grpc.RpcError as error:
            expect(error.code(), grpc.StatusCode.INVALID_ARGUMENT, "code")

    def no_protobuf(self):
        call = self.channel.unary_unary("/TextPrompting/Forward")
        try:
            call(b"\xff\xff\xff", metadata=self.metadata(), timeout=5)
        except grpc.RpcError as error:
            assert error.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT), error.code()
            return str(error.code())
        raise AssertionError("answered")

    def unknown_method(self):
        try:
            self.channel.unary_unary("/TextPrompting/NoSuchMethod")(b"", metadata=self.metadata(), timeout=5)
        except grpc.RpcError as error:
            expect(error.code(), grpc.StatusCode.UNIMPLEMENTED, "code")
            return
        raise AssertionError("answered")


def run(table, sdk, open_miner, strict_miner, proto_folder):
    contract = generate(proto_folder)
    open_, strict = Grpc(sdk, open_miner, contract), Grpc(sdk, strict_miner, contract)
    table.run("grpc: Forward", open_.plain)
    table.run("grpc: Forward, unicode", open_.unicode)
    table.run("grpc: Forward, history", open_.history)
    table.run("grpc: MultiForward", open_.multi)
    table.run("grpc: Backward", open_.backward)
    table.run("grpc: 50 at once of one session", open_.concurrent)
    table.run("grpc: health", open_.health)
    table.run("grpc: reflection", open_.reflection)
    table.run("grpc: no good signature", open_.no_signature)
    table.run("grpc: addressed to another key", open_.wrong_receiver)
    table.run("grpc: the same metadata again", open_.replayed)
    table.run("grpc: ancient version", open_.old_version)
    table.run("grpc: listed key is served", strict.plain)
    table.run("grpc: stranger is refused", strict.blacklisted)
    table.run("grpc: no time left", open_.no_time)
    table.run("grpc: odd timeouts", open_.odd_timeouts)
    table.run("grpc: bad messages", open_.bad_messages)
    table.run("grpc: no protobuf", open_.no_protobuf)
    table.run("grpc: unknown method", open_.unknown_method)
    table.run("grpc: still there", open_.plain)
