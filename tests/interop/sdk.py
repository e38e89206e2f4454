"""One face for the SDK versions: keys, dendrites, targets, and the text-prompting synapses restated."""

import importlib
import os
import sys
import typing

# What a machine without a public address says of itself; the SDK would ask third parties for it.
EXTERNAL_IP = "203.0.113.7"


def load():
    """Imports bittensor without letting it read our command line, ask for its address or greet anyone."""
    os.environ.setdefault("BT_NO_PARSE_CLI_ARGS", "1")
    arguments, sys.argv = sys.argv, sys.argv[:1]
    try:
        import bittensor
    finally:
        sys.argv = arguments
    try:
        import bittensor.utils.networking as networking
    except ImportError:
        return bittensor  # 11 and later: no axon, no dendrite, no look-up
    networking.get_external_ip = lambda: EXTERNAL_IP
    return bittensor


class Sdk:
    """The parts of an SDK that a validator uses."""

    def __init__(self, version):
        self.version = version
        self.numbers = tuple(int(part) for part in version.split(".")[:3])
        self.bittensor = load()
        if self.has_dendrite:
            self.Synapse = self.bittensor.Synapse
            self.StreamingSynapse = self.bittensor.StreamingSynapse
            fields = getattr(self.Synapse, "model_fields", None) or getattr(self.Synapse, "__fields__", {})
            # Up to 7.1 the hashed fields are listed in a field of the synapse, later on its class.
            self.hash_fields_in_body = "required_hash_fields" in fields
            self._make_synapses()

    @property
    def has_dendrite(self):
        return self.numbers < (11,)

    @property
    def monotonic_nonces(self):
        return self.numbers < (7, 2) and self.numbers != (6, 10, 0)

    def keypair(self, uri):
        for module in ("bittensor.sp_core", "bittensor_wallet", "bittensor", "substrateinterface"):
            try:
                found = importlib.import_module(module).Keypair
            except (ImportError, AttributeError):
                continue
            return found.create_from_uri(uri)
        raise RuntimeError("this SDK has no Keypair")

    @staticmethod
    def sign(keypair, text):
        """0x and the signature of a text in hex."""
        return "0x" + bytes(keypair.sign(text.encode())).hex()

    def dendrite(self, keypair):
        make = getattr(self.bittensor, "Dendrite", None) or self.bittensor.dendrite
        return make(wallet=keypair)

    def target(self, ip, port, hotkey):
        return self.bittensor.AxonInfo(version=1, ip=ip, port=port, ip_type=4, hotkey=hotkey, coldkey=hotkey)

    def _make_synapses(self):
        hashed = ["messages"]
        if self.hash_fields_in_body:
            annotations, extra = {"required_hash_fields": typing.List[str]}, {"required_hash_fields": hashed}
        else:
            annotations, extra = {"required_hash_fields": typing.ClassVar[typing.Tuple[str, ...]]}, {"required_hash_fields": tuple(hashed)}
        prompt = {"roles": typing.List[str], "messages": typing.List[str], "completion": str}

        def synapse(name, base, annotated, **values):
            namespace = {"__annotations__": {**annotated, **annotations}, "__module__": __name__, **extra, **values}
            return type(name, (base,), namespace)

        plain = {"completion": "", "deserialize": lambda self: self}
        self.Prompting = synapse("Prompting", self.Synapse, prompt, **plain)
        self.PromptingSynapse = synapse("PromptingSynapse", self.Synapse, prompt, **plain)
        streamed = {"completion": "", "deserialize": lambda self: self.completion,
                    "process_streaming_response": read_stream, "extract_response_json": describe_stream}
        self.StreamPrompting = synapse("StreamPrompting", self.StreamingSynapse, prompt, **streamed)
        self.StreamPromptingSynapse = synapse("StreamPromptingSynapse", self.StreamingSynapse, prompt, **streamed)
        tasked = {**prompt, "task_name": str, "target_model": typing.Optional[str], "seed": typing.Optional[int]}
        self.TaskedStreamPromptingSynapse = synapse(
            "StreamPromptingSynapse", self.StreamingSynapse, tasked, target_model=None, seed=None, **streamed)
        maps = {"task_availabilities": typing.Dict[str, bool], "llm_model_availabilities": typing.Dict[str, bool]}
        self.AvailabilitySynapse = type("AvailabilitySynapse", (self.Synapse,), {
            "__annotations__": maps, "__module__": __name__, "deserialize": lambda self: self})
        self.NoSuchSynapse = synapse("NoSuchSynapse", self.Synapse, prompt, **plain)


async def read_stream(self, response):
    """Every read is decoded on its own, as the subnets' clients do: a character cut in two raises."""
    async for piece in response.content.iter_any():
        text = piece.decode("utf-8")
        self.completion += text
        yield text


def describe_stream(self, response):
    """What the client builds its synapse from when the stream has ended."""
    headers = {name.decode().lower(): value.decode() for name, value in response.__dict__["_raw_headers"]}

    def side(prefix):
        return {name[len(prefix):]: value for name, value in headers.items() if name.startswith(prefix)}

    return {
        "name": headers.get("name", ""),
        "timeout": float(headers.get("timeout", 0)),
        "total_size": int(headers.get("total_size", 0)),
        "header_size": int(headers.get("header_size", 0)),
        "dendrite": side("bt_header_dendrite_"),
        "axon": side("bt_header_axon_"),
        "roles": self.roles,
        "messages": self.messages,
        "completion": self.completion,
        **({"task_name": self.task_name} if hasattr(self, "task_name") else {}),
    }
