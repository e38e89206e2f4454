#!/usr/bin/env python3
"""Writes a corpus to start from into corpus/, a few inputs for each target."""

import hashlib
import json
import pathlib
import struct

HERE = pathlib.Path(__file__).resolve().parent
KEYS = ["5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY", "5FHneW46xGXgs5mUiveU4sbTyGBzmstUspZC92UhjJM694ty"]


def write(target, data):
    folder = HERE / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / hashlib.sha1(data).hexdigest()).write_bytes(data)


def gguf(version, metadata, tensors):
    def text(value):
        return struct.pack("<Q", len(value)) + value.encode()

    out = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    for name, (kind, value) in metadata.items():
        out += text(name) + struct.pack("<I", kind) + value
    for name, (shape, kind, offset) in tensors.items():
        out += text(name) + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", n) for n in shape)
        out += struct.pack("<IQ", kind, offset)
    return out + bytes(64)


def main():
    text = lambda value: struct.pack("<Q", len(value)) + value.encode()
    metadata = {
        "general.architecture": (8, text("llama")),
        "llama.context_length": (4, struct.pack("<I", 2048)),
        "general.alignment": (4, struct.pack("<I", 32)),
        "tokenizer.ggml.scores": (9, struct.pack("<IQ", 6, 2) + struct.pack("<ff", 0.5, 1.5)),
        "tokenizer.chat_template": (8, text("{{ messages }}")),
    }
    for version in (2, 3):
        write("gguf_header", gguf(version, metadata, {"token_embd.weight": ((32, 2), 0, 0), "output.weight": ((32, 2), 8, 256)}))
    write("gguf_header", gguf(3, {}, {}))

    neurons = [
        {"uid": uid, "hotkey": key, "stake_rao": 10**12, "validator_permit": True, "axon": {"ip": "192.0.2.7", "port": 8091}}
        for uid, key in enumerate(KEYS)
    ]
    snapshot = {"schema_version": 1, "network": "finney", "genesis_hash": "0x" + "2f" * 32, "netuid": 1, "block": 4_000_000,
                "taken_at": 1_700_000_000, "neurons": neurons}
    write("metagraph", json.dumps(snapshot).encode())
    write("metagraph", json.dumps(snapshot | {"neurons": []}).encode())

    chunk = lambda choice, **more: json.dumps({"object": "chat.completion.chunk", "choices": [choice], **more})
    said = [
        chunk({"index": 0, "delta": {"role": "assistant", "content": "h\u00e9"}, "finish_reason": None}),
        chunk({"index": 1, "delta": {"content": [{"type": "text", "text": "a"}]}, "logprobs": {"content": [
            {"token": "a", "logprob": -0.5, "top_logprobs": [{"token": "a", "logprob": -0.5}]}]}}),
        chunk({"index": 0, "delta": {}, "finish_reason": "stop"}, usage={"prompt_tokens": 1, "completion_tokens": 2}),
    ]
    stream = "".join(f"data: {event}\r\n\r\n" for event in said) + "data: [DONE]\n\n"
    for step in (0, 6, 255):
        write("openai_reply", bytes([step]) + stream.encode())
    for event in said + [json.dumps({"error": {"message": "no", "type": "rate_limit", "code": 7}})]:
        write("openai_reply", b"\0" + event.encode())


if __name__ == "__main__":
    main()
