"""Rules for scripts that treat a service as one container."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Final

from sharedvol.lint.compose.node import Position
from sharedvol.lint.project import ComposeService, Project, Script
from sharedvol.lint.rule import Rule, Severity, Violation, rule

# A lookahead matches the arguments, so that the search also finds the next command in the line.
_DOCKER: Final = re.compile(
    r"\b(?:docker|podman)\s+(?:(?:-H|-c|-l|--host|--context|--config|--log-level)[=\s]\s*\S+\s+)*"
    r"(?:container\s+)?(exec|logs|restart|stop|start|kill|cp|inspect|attach)\s+(?=(.*))"
)
_COMPOSE: Final = re.compile(r"\bdocker(?:\s+|-)compose\s+(?=(.*))")
_SEPARATORS: Final = set("();<>|&")
_SEVERAL: Final = {"restart", "stop", "start", "kill", "inspect"}  # take more than one name
_STOPPING: Final = {"-t", "--time", "--timeout", "-s", "--signal"}
_VALUES: Final = {
    "exec": {"-e", "--env", "-u", "--user", "-w", "--workdir", "--env-file", "--detach-keys"},
    "logs": {"-n", "--tail", "--since", "--until"},
    "restart": _STOPPING,
    "stop": _STOPPING,
    "kill": {"-s", "--signal"},
    "start": {"--detach-keys"},
    "attach": {"--detach-keys"},
    "inspect": {"-f", "--format", "--type"},
}
_WORKS_WITH: Final = re.compile(r"[A-Za-z0-9][\w.-]*")


@rule(
    "SV070",
    "docker exec and the like by a container's name",
    Severity.error,
    why="""A name in a script is one container. A service with replicas cannot have a `container_name`, and the names
    that Compose gives (`project-api-1`) belong to single replicas, whose numbers change when they are recreated.
    The command fails, or it runs in one replica and not in the others.""",
    mend="""Use `docker compose exec --index N SERVICE …` for one replica, and `for id in $(docker compose ps -q
    SERVICE); do docker exec "$id" …; done` for all. Work that is needed once does not belong in a replica.""",
)
def exec_by_name(project: Project) -> Iterator[Violation]:
    for script in project.scripts:
        for at, line in _commands(script):
            for match in _DOCKER.finditer(line):
                for name in _names_in(_words(match[2]), match[1]):
                    yield from _by_name(project, at, match[1], name)


def _by_name(project: Project, at: Position, verb: str, name: str) -> Iterator[Violation]:
    for service in project.services:
        if name and name in _names(service):
            is_alone = not service.replicated and not service.grows
            if is_alone and name == service.node.get("container_name").text:
                continue
            severity = None if service.replicated else Severity.note
            message = f"docker {verb} {name!r} treats service {service.name!r} as one container"
            yield Violation(at, message, "", severity)
            return
        if re.fullmatch(rf"(?:[a-z0-9][a-z0-9_-]*[-_])?{re.escape(service.name)}[-_]\d+", name):
            severity = None if service.replicated else Severity.note
            yield Violation(at, f"docker {verb} {name!r} is one replica of service {service.name!r}", "", severity)
            return


def _names(service: ComposeService) -> set[str]:
    fixed = service.node.get("container_name").text
    return {service.name, fixed} - {""}


@rule(
    "SV071",
    "docker compose exec reaches the first replica only",
    Severity.note,
    why="""Without `--index`, `docker compose exec SERVICE` runs in the replica with the lowest number. A reload, a
    cache purge or a change of the log level then affects only one of N replicas.""",
    mend="""Name the replica (`--index`) if you mean one. Loop over `docker compose ps -q SERVICE` if you mean all.
    Use `docker compose run --rm` for work that needs no running replica.""",
)
def exec_in_the_first(project: Project) -> Iterator[Violation]:
    for script in project.scripts:
        for at, line in _commands(script):
            for match in _COMPOSE.finditer(line):
                words = _words(match[1])
                if "exec" not in words or any(word.startswith("--index") for word in words):
                    continue
                names = _names_in(words[words.index("exec") + 1 :], "exec")
                service = next((one for one in project.replicated if one.name in names), None)
                if service is not None:
                    message = f"docker compose exec {service.name!r} runs in one of its {service.replicas} replicas"
                    yield Violation(at, message)


def _commands(script: Script) -> Iterator[tuple[Position, str]]:
    """Yield the lines without comments, joined with the next line after a backslash."""
    whole, start = "", 0
    for number, line in enumerate(script.text.split("\n"), 1):
        start = start or number
        whole += line.rstrip("\\") if line.endswith("\\") else line
        if line.endswith("\\") and len(whole) < 10_000:
            continue
        bare = re.sub(r"(?:^|\s)#.*", "", whole)
        if bare.strip():
            column = len(bare) - len(bare.lstrip()) + 1
            yield Position(script.name, start, column), bare
        whole, start = "", 0


def _words(text: str) -> Sequence[str]:
    """Return the words of a command, up to the next command."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
    lexer.whitespace_split, lexer.commenters = True, ""
    words: list[str] = []
    try:
        for word in lexer:
            if set(word) <= _SEPARATORS:
                break
            words.append(word)
    except ValueError:  # a quotation that ends on another line
        return words or text.split()
    return words


def _names_in(words: Sequence[str], verb: str) -> Sequence[str]:
    """Return the names of containers: the arguments that are not options, or for ``cp`` the text before a colon."""
    found: list[str] = []
    rest = iter(words)
    for word in rest:
        if word in _VALUES.get(verb, ()):
            next(rest, None)
        elif verb == "cp" and not word.startswith("-"):
            name, colon, _ = word.partition(":")
            found += [name] if colon else []
        elif not word.startswith("-"):
            found.append(word)
            if verb not in _SEVERAL:
                break
    return [name for name in found if _WORKS_WITH.fullmatch(name)]


RULES: Final[tuple[Rule, ...]] = (exec_by_name, exec_in_the_first)
