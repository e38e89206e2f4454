"""Runs cases, prints a table, counts."""

import asyncio
import inspect
import time
import traceback


class Skip(Exception):
    """Raised by a case that does not apply, with the reason."""


def failed_line(error):
    """The source line of a bare assertion."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"line {last.lineno}: {last.line}"


class Table:
    def __init__(self, only=None):
        self.rows, self.only = [], only

    def run(self, name, case, *arguments, timeout=60):
        """Runs one case; anything it raises is its failure."""
        if self.only and self.only not in name:
            return
        began = time.monotonic()
        try:
            outcome = case(*arguments)
            if inspect.isawaitable(outcome):
                async def limited():
                    return await asyncio.wait_for(outcome, timeout)
                outcome = asyncio.run(limited())
            result, note = "ok", outcome or ""
        except Skip as reason:
            result, note = "skipped", str(reason)
        except AssertionError as error:
            result, note = "FAILED", str(error) or failed_line(error)
        except Exception as error:  # noqa: BLE001 - every kind of failure is a row
            result, note = "FAILED", f"{type(error).__name__}: {error}"
        seconds = time.monotonic() - began
        self.rows.append((name, result, seconds, str(note)))
        print(f"{result:<8} {seconds:6.2f} s  {name:<58} {str(note)[:160]}", flush=True)

    def finish(self):
        """Prints the counts and returns the exit code."""
        count = {kind: sum(1 for row in self.rows if row[1] == kind) for kind in ("ok", "FAILED", "skipped")}
        print(f"{count['ok']} passed, {count['FAILED']} failed, {count['skipped']} skipped")
        return 1 if count["FAILED"] or not count["ok"] else 0


def expect(found, wanted, what="status"):
    assert found == wanted, f"{what} is {found!r}, expected {wanted!r}"
