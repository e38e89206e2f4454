"""A real axon of the SDK on the loopback, with text-prompting handlers; no chain.

    axon.py VERSION PORT READY_FILE

Answers `echo: ` and the last message; writes READY_FILE once it listens; ends with its standard input.
"""

import os
import socket
import sys
import time
import typing

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from sdk import Sdk  # noqa: E402

# Cut so that most pieces end within a character.
PIECE = 7
SLOW = "take your time"


def wallet(keypair):
    """What an axon reads of a wallet."""
    return type("Wallet", (), {"hotkey": keypair, "coldkey": keypair, "coldkeypub": keypair})()


def handlers(sdk):
    def plain(synapse):
        if synapse.messages[-1] == SLOW:
            time.sleep(3)
        synapse.completion = "echo: " + synapse.messages[-1]
        return synapse

    def streamed(synapse):
        data = ("echo: " + synapse.messages[-1]).encode()

        async def send_all(send):
            for start in range(0, len(data), PIECE):
                await send({"type": "http.response.body", "body": data[start:start + PIECE], "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        return synapse.create_streaming_response(send_all)

    # The axon compares the functions' parameters and annotations, one set of functions a synapse.
    for handler, kind in ((plain, sdk.Prompting), (streamed, sdk.StreamPrompting)):
        handler.__annotations__ = {"synapse": kind, "return": kind}
        yield handler, blacklist_of(sdk, kind)


def blacklist_of(sdk, kind):
    """The axon's own blacklist: everybody but Bob."""
    bob = sdk.keypair("//Bob").ss58_address

    def blacklist(synapse):
        return synapse.dendrite.hotkey != bob, "not welcome"

    blacklist.__annotations__ = {"synapse": kind, "return": typing.Tuple[bool, str]}
    return blacklist


def main():
    version, port, ready = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    sdk = Sdk(version)
    # Older versions write the class with a small letter.
    kind = getattr(sdk.bittensor, "Axon", None) or sdk.bittensor.axon
    axon = kind(
        wallet=wallet(sdk.keypair("//Alice")), port=port, ip="127.0.0.1", external_ip="127.0.0.1")
    for forward, blacklist in handlers(sdk):
        axon.attach(forward_fn=forward, blacklist_fn=blacklist)
    axon.start()
    for _ in range(400):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.05)
    else:
        sys.exit("the axon does not listen")
    with open(f"{ready}.new", "w") as file:
        file.write(sdk.keypair("//Alice").ss58_address)
    os.rename(f"{ready}.new", ready)
    sys.stdin.read()
    os._exit(0)  # the axon's thread would hold the process


if __name__ == "__main__":
    main()
