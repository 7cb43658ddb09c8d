"""The conformance adapter of Python: one request a line in, one answer a line out. See ../README.md."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from datetime import date
from pathlib import Path
from urllib.parse import quote_from_bytes, unquote_to_bytes

import sharedvol
from sharedvol import FileLock
from sharedvol.publishing.mark import microsecond

CAPABILITIES = "lock shared timeout queue fork network fence holder names publish replace mark purge sql"
locks: dict[str, FileLock] = {}
given = [0]  # how many warnings of a network file system
kept: dict[tuple[object, ...], FileLock] = {}  # as a program would: one object for each lock


def say(*words: object) -> None:
    sys.stdout.write(" ".join(quote_from_bytes(os.fsencode(str(word))) or "%" for word in words) + "\n")
    sys.stdout.flush()


def hear() -> list[str]:
    line = sys.stdin.buffer.readline()
    if not line:
        sys.exit()
    return [os.fsdecode(b"" if word == b"%" else unquote_to_bytes(word)) for word in line.split()]


def seconds(word: str) -> float | None:
    return None if word == "inf" else float(word)


def hello() -> None:
    say("ok", 1, "python", "both", *CAPABILITIES.split())


def reset() -> None:
    for held in locks.values():
        held.release()
    locks.clear()
    kept.clear()
    say("ok")


def lock(handle: str, path: str, kind: str, limit: str) -> None:
    made = kept.setdefault((path, kind), FileLock(path, shared=kind == "shared"))
    made.acquire(seconds(limit))
    locks[handle] = made
    say("ok")


def unlock(handle: str) -> None:
    locks.pop(handle).release()
    say("ok")


def count(path: str, data: str, times: str) -> None:
    made = FileLock(path)
    for _ in range(int(times)):
        with made:
            Path(data).write_text(str(int(Path(data).read_text()) + 1))
    say("ok")


def turns(path: str, data: str, total: str, mark: str) -> None:
    made = FileLock(path)
    while True:
        with made, open(data, "a") as file:
            if file.tell() >= int(total):
                break
            file.write(mark)
            time.sleep(0.002)
        time.sleep(0.001)
    say("ok")


def fork(handle: str, fifo: str) -> None:
    if os.fork() == 0:
        say("ok", "yes" if locks[handle].held else "no")
        with contextlib.suppress(sharedvol.SharedVolError):
            locks[handle].release()
        Path(fifo).read_bytes()
        os._exit(0)


def warned() -> None:
    say("ok", given[0])


def _count_warning(message: Warning | str, category: type[Warning], *_: object) -> None:
    given[0] += issubclass(category, sharedvol.NetworkFileSystemWarning)


def fence(handle: str, path: str, limit: str, purpose: str) -> None:
    made = kept.setdefault((path, "fenced", purpose), FileLock(path, fenced=True, purpose=purpose))
    made.acquire(seconds(limit))
    locks[handle] = made
    say("ok", made.token)


def tokens(path: str, data: str, times: str) -> None:
    made = FileLock(path, fenced=True)
    for _ in range(int(times)):
        with made, open(data, "a") as file:
            file.write(f"{made.token}\n")
    say("ok")


def holder(path: str) -> None:
    found = FileLock(path).holder()
    if found is None:
        say("nobody")
    elif not found.replica:
        say("unknown")
    else:
        say("ok", found.replica, found.pid, found.token, found.purpose)


def container(raw: str) -> None:
    os.environ["HOSTNAME"] = raw
    say("ok", sharedvol.container_id())


def build_container(directory: str, name: str) -> None:
    say("ok", sharedvol.container_path(directory, name))


def build_log(directory: str, day: str) -> None:
    say("ok", sharedvol.log_path(directory, date=date.fromisoformat(day)))


def build_unique(directory: str, name: str) -> None:
    say("ok", sharedvol.unique_path(directory, name))


def parse(name: str, *containers: str) -> None:
    found = sharedvol.parse_name(name, containers=containers or None)
    rest = (found.date, found.worker, found.count)
    say("ok", found.form, found.name, found.container, *("" if word is None else word for word in rest))


def publish(path: str, source: str) -> None:
    _publish(path, source, lambda: None)


def publish_slowly(path: str, source: str) -> None:
    def pause() -> None:
        say("writing")
        hear()

    _publish(path, source, pause)


def replace(path: str, source: str) -> None:
    _publish(path, source, lambda: None, replace=True)


def mark(second: str, size: str) -> None:
    say("ok", microsecond(int(second), int(size)))


def _publish(path: str, source: str, pause: Callable[[], None], replace: bool = False) -> None:
    with sharedvol.publish(path, "wb", replace=replace) as file, open(source, "rb") as content:
        shutil.copyfileobj(content, file)
        file.flush()
        pause()
    say("ok")


def purge(directory: str, version: str) -> None:
    from sharedvol.cache import Cache  # here, as it makes each start slower

    say("ok", "yes" if Cache(directory, version=version).purged else "no")


def split(text: str) -> None:
    from sharedvol.migrations import split_script

    say("ok", *split_script(text))


VERBS: tuple[Callable[..., None], ...] = (
    hello,
    reset,
    lock,
    unlock,
    count,
    turns,
    fork,
    warned,
    fence,
    tokens,
    holder,
    container,
    build_container,
)
VERBS += (build_log, build_unique, parse, publish, publish_slowly, replace, mark, purge, split)
BY_NAME = {verb.__name__.replace("_", "-"): verb for verb in VERBS}


def main() -> None:
    warnings.simplefilter("always")
    warnings.showwarning = _count_warning
    while True:
        name, *words = hear()
        try:
            BY_NAME[name](*words)
        except KeyError:
            say("unknown", name)
        except sharedvol.LockTimeout:
            say("timeout")
        except sharedvol.AlreadyPublishedError:
            say("taken")
        except (sharedvol.SharedVolError, OSError, ValueError) as error:
            say("error", error)


if __name__ == "__main__":
    main()
