"""Queries a running miner as real clients do. Start it through run.sh."""

import argparse
import os
import shutil
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--sdk", required=True, help="the installed bittensor version")
    options.add_argument("--miner", required=True, help="the miner's program")
    options.add_argument("--tool", help="the tool whose client asks a real axon of the SDK [default: idiolect beside the miner]")
    options.add_argument("--only", help="run only cases whose name contains this")
    options.add_argument("--keep", action="store_true", help="keep the miners' data and logs")
    options = options.parse_args()

    import chat_cases
    import dendrite_cases
    import grpc_cases
    import http_cases
    from miner import Miner
    from sdk import Sdk
    from table import Table

    sdk = Sdk(options.sdk)
    table = Table(options.only)
    work = tempfile.mkdtemp(prefix="idiolect-interop-")
    bob = sdk.keypair("//Bob").ss58_address
    legacy = ["--legacy_http", "true"] if sdk.has_dendrite and sdk.monotonic_nonces else []

    def miner(name, *flags):
        data = os.path.join(work, name)
        os.mkdir(data)
        return Miner(options.miner, *flags, data=data, log=os.path.join(work, f"{name}.log")).start()

    miners = []
    try:
        miners.append(miner("open", "--blacklist.allow", "any", "--policy.rate", "0", *legacy))
        miners.append(miner("strict", "--blacklist.allow", bob, "--policy.rate", "0", *legacy))
        open_miner, strict_miner = miners
        print(f"bittensor {options.sdk}, miner {open_miner.hotkey} on {open_miner.url}, ready after {open_miner.start_seconds:.2f} s")
        if sdk.has_dendrite:
            http_cases.run(table, sdk, open_miner, strict_miner)
        grpc_cases.run(table, sdk, open_miner, strict_miner, os.path.join(HERE, "..", "..", "proto"))
        chat_cases.run(table, sdk, open_miner, strict_miner)
        if sdk.has_dendrite:
            miners.append(miner("rated", "--blacklist.allow", "any", "--policy.rate", "4", *legacy))
            http_cases.run_rated(table, sdk, miners[-1], 4)
            http_cases.run_restart(table, sdk, open_miner)
            if legacy:
                miners.append(miner("modern", "--blacklist.allow", "any"))
                http_cases.run_without_legacy(table, sdk, miners[-1])
        tool = options.tool or os.path.join(os.path.dirname(options.miner), "idiolect")
        dendrite_cases.run(table, sdk, tool, work)
        failed = table.finish()
    finally:
        for each in miners:
            each.kill()
    if failed or options.keep:
        print(f"logs and data: {work}")
    else:
        shutil.rmtree(work)
    return failed


if __name__ == "__main__":
    sys.exit(main())
