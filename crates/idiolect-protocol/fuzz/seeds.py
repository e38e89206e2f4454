#!/usr/bin/env python3
"""Writes a corpus to start from into corpus/, one input for each recorded request: seeds.py [FOLDER OF VECTORS]."""

import hashlib
import json
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
VECTORS = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else HERE.parents[2] / "tests" / "data" / "vectors"

# In the order of the targets' own lists.
HTTP = ["bt_header_dendrite_hotkey", "bt_header_dendrite_nonce", "bt_header_dendrite_uuid", "bt_header_dendrite_signature",
        "bt_header_dendrite_version", "computed_body_hash", "timeout", "bt_header_input_obj_roles", "bt_header_input_obj_messages",
        "bt_header_input_obj_task_availabilities", "bt_header_input_obj_llm_model_availabilities"]
GRPC = ["bittensor-version", "bittensor-signature", "grpc-timeout"]
EPISTULA = ["epistula-signed-for", "epistula-signed-by", "epistula-timestamp", "epistula-uuid", "epistula-request-signature", "x-client-timeout", "task"]
BTAUTH = ["x-bittensor-version", "x-bittensor-hotkey", "x-bittensor-nonce", "x-bittensor-signature", "x-bittensor-crypto", "x-bittensor-receiver"]
RECEIVERS = {"epistula-signed-for", "x-bittensor-receiver"}


def lines(names, headers):
    """One line a header: `!` leaves it out, `@` is the miner's own address."""
    headers = {name.lower(): str(value) for name, value in headers.items()}
    values = ["@" if name in RECEIVERS and name in headers else headers.get(name, "!") for name in names]
    return "".join(value + "\n" for value in values).encode()


def write(target, data):
    folder = HERE / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / hashlib.sha1(data).hexdigest()).write_bytes(data)


def cases(name):
    return json.loads((VECTORS / name).read_text())["cases"]


def main():
    for name in ("http-6.9.4.json", "http-10.5.0.json"):
        for case in cases(name):
            request = case["request"]
            write("http_synapse", lines(HTTP, request["headers"]) + (request.get("body") or "").encode())
    for case in cases("grpc-5.3.4.json"):
        write("grpc_metadata", lines(GRPC, {name: value for name, value in case["metadata"]}))
        write("grpc_message", bytes.fromhex(case.get("request_hex") or ""))
        write("grpc_message", bytes.fromhex(case.get("response_hex") or ""))
    for case in cases("epistula.json"):
        body = case["body_utf8"].encode()
        write("epistula", lines(EPISTULA, case["headers"]) + body)
        write("chat_request", body)
    for case in cases("btauth.json"):
        write("btauth", lines(BTAUTH, case["headers"]) + (case.get("body_utf8") or "").encode())
    hashed = json.loads((VECTORS / "body_hash.json").read_text())
    for case in hashed["single"]:
        write("python_text", json.dumps(case["json"], ensure_ascii=False).encode())
    write("python_text", b"5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY")
    write("chat_request", json.dumps({
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": [{"type": "text", "text": "t"}]}], "model": ["m"],
        "task": "InferenceTask", "seed": 7, "n": 2, "stream": True, "logprobs": True, "timeout": 9.5,
        "sampling_parameters": {"temperature": 0.7, "top_p": 0.9, "top_k": 50, "max_new_tokens": 64, "repetition_penalty": 1.1, "do_sample": True},
    }).encode())
    write("chat_request", json.dumps({"task_availabilities": {"a": True}, "llm_model_availabilities": {}}).encode())
    for step in (b"\x00", b"\x05", b"\xff"):
        write("sse", step + b'id: 1\r\nevent: x\r\nretry: 9\r\n: note\r\ndata: {"a": 1}\r\ndata: b\r\n\r\ndata: [DONE]\n\n')


if __name__ == "__main__":
    main()
