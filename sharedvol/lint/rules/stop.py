"""Rules for replicas that stop: drain, signals, updates and restarts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from sharedvol.lint.compose.node import EMPTY
from sharedvol.lint.project import ComposeService
from sharedvol.lint.rule import Rule, Severity, Violation, of_each, of_replicated, rule

DEFAULT_GRACE: Final = 10.0  # seconds; the engine's
_SHELL: Final = re.compile(r"(?:.*/)?(?:ba|da|a|z)?sh")
_COMPOUND: Final = re.compile(r"&&|\|\||[;|\n]")


@rule(
    "SV040",
    "stop_grace_period missing or shorter than the drain",
    Severity.warning,
    why="""After SIGTERM the engine waits 10 s and kills. A replica that drains stays reachable until the proxy
    has noticed that it is not ready, and then finishes its requests. Requests that do not finish in time are cut
    off, and the client sees a 502. Scaling down and every update do this to each replica.""",
    mend="""Set `stop_grace_period` above the drain and the longest request, such as `30s`. The drain is read from
    DRAIN_SECONDS in the environment, or from `x-sharedvol: {drain: 5}`.""",
)
@of_replicated
def short_grace(service: ComposeService) -> Iterator[Violation]:
    grace = service.node.get("stop_grace_period")
    declared = (service.declared("drain"), service.environment.get("DRAIN_SECONDS", EMPTY))
    drain = next((seconds for one in declared if (seconds := one.seconds) is not None), None)
    if not grace.present:
        yield Violation(service.at, f"there is no stop_grace_period: it is killed {DEFAULT_GRACE:g} s after SIGTERM")
    elif drain is not None and grace.seconds is not None and grace.seconds <= drain:
        yield Violation(grace.at, f"stop_grace_period {grace.text} is not longer than the drain of {drain:g} s")


@rule(
    "SV041",
    "no init process",
    Severity.note,
    why="""The program is process 1. Signals that it does not handle have no effect, so SIGTERM is ignored until
    SIGKILL comes. Child processes that it does not reap stay as zombies until the process table is full.""",
    mend="Set `init: true`.",
)
@of_replicated
def no_init(service: ComposeService) -> Iterator[Violation]:
    if not service.node.get("init").true and not service.is_sidecar:
        yield Violation(service.at, "its program is process 1")


@rule(
    "SV042",
    "a shell between the engine and the program",
    Severity.warning,
    why="""SIGTERM goes to the shell, which waits for its child and does not forward signals. The program does not
    drain, and is killed at the end of the grace period with its requests and its unfinished files. `init: true`
    does not help, because it signals the shell as well.""",
    mend="Begin the last command with `exec`, as in `sh -c 'prepare && exec serve'`.",
)
@of_replicated
def shell_without_exec(service: ComposeService) -> Iterator[Violation]:
    words = [word.text for word in service.words]
    for index, word in enumerate(words[:-2]):
        flags = words[index + 1]
        if _SHELL.fullmatch(word) and re.fullmatch(r"-[a-z]*c", flags):
            script = words[index + 2]
            if _COMPOUND.search(script.strip()) and not re.search(r"\bexec\s", script):
                yield Violation(service.line_at, f"the shell that runs {script[:60]!r} does not forward SIGTERM")
            return


@rule(
    "SV043",
    "update that stops before it starts",
    Severity.note,
    why="""`order` is `stop-first` by default, and `parallelism: 0` means all at once. An update then removes a
    replica, or all of them, before the successor is ready. Without `failure_action: rollback` a version that does
    not start replaces one replica after the other. (Swarm and tools that roll for Compose follow these settings;
    plain `docker compose up` does not.)""",
    mend="""Set `deploy.update_config` to `{parallelism: 1, delay: 30s, order: start-first, failure_action:
    rollback}`.""",
)
@of_replicated
def update_order(service: ComposeService) -> Iterator[Violation]:
    update = service.node.get("deploy", "update_config")
    parallelism = update.get("parallelism").number
    at = update.at if update.present else service.at
    if service.is_sidecar:
        return
    if update.present and parallelism is not None and (parallelism == 0 or parallelism >= service.replicas):
        yield Violation(at, "an update replaces all replicas at once", severity=Severity.warning)
    elif update.get("order").text != "start-first":
        yield Violation(at, "an update stops a replica before its successor is ready")


@rule(
    "SV044",
    "no restart policy on a replicated service",
    Severity.note,
    why="""Without a restart policy a replica that ends stays down. The others take over its work, so this is not
    noticed until too few are left.""",
    mend="Set `restart: unless-stopped`, or `deploy.restart_policy`.",
)
@of_replicated
def no_restart(service: ComposeService) -> Iterator[Violation]:
    policy = service.node.get("restart")
    if not service.node.get("deploy", "restart_policy").present and policy.text in {"", "no", "false"}:
        yield Violation(policy.at if policy.present else service.at, "a replica that ends stays down")


@rule(
    "SV045",
    "stopped by a signal that cannot be handled",
    Severity.warning,
    why="SIGKILL ends a program at once: it neither drains, nor finishes requests, nor closes files.",
    mend="Remove `stop_signal`, or set it to a signal at which the program shuts down properly.",
)
@of_each
def killing_signal(service: ComposeService) -> Iterator[Violation]:
    signal = service.node.get("stop_signal")
    if signal.text.upper().removeprefix("SIG") in {"KILL", "9"}:
        yield Violation(signal.at, "it is stopped by SIGKILL")


RULES: Final[tuple[Rule, ...]] = (
    short_grace,
    no_init,
    shell_without_exec,
    update_order,
    no_restart,
    killing_signal,
)
