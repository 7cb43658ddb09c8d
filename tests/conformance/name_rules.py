"""The rules of names: built alike in every language, and parsed by all."""

from __future__ import annotations

import os
import random
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote_to_bytes

from adapter import Adapter, Answer
from rules import Scene, rule

VECTORS = Path(__file__).with_name("names.tsv")

HOSTILE: tuple[str, ...] = (
    "3f9c0d1e2b4a",
    "web_1",
    "web.1",
    "_",
    "-rf",
    ".hidden",
    "ünï côde",
    "日本語",
    "a/b",
    "x" * 64,
    "x" * 300,
)
HOSTILE += ("a_u0123456789abc-7", "web1.json", "x_20260131", "line\nfeed", "$(id) 'x'", "u0123456789abc-1")
"""Values of HOSTNAME."""

NAMES = ("job_7.json", "a.json.gz", ".bashrc", "ü ber_-.csv", "_")
"""File names to make unique."""

ALPHABET = "aZ09_.-__.. é日" + "ugzjson"
SEED = 20260131
RANDOM = 60


def decode(word: str) -> str:
    """A word of the line protocol."""
    return os.fsdecode(b"" if word == "%" else unquote_to_bytes(word))


def vectors(*verbs: str) -> Iterator[tuple[str, list[str], Answer]]:
    """HOSTNAME, request and answer of each line that is about one of the verbs."""
    for line in VECTORS.read_text().splitlines():
        host, request, answer = line.split("\t")
        words = [decode(word) for word in request.split(" ")]
        if words[0] in verbs:
            first, *rest = (decode(word) for word in answer.split(" "))
            yield decode(host), words, Answer(first, tuple(rest))


def agree_with_vectors(one: Adapter, *verbs: str) -> None:
    wrong, now = [], None
    for host, (verb, *words), expected in vectors(*verbs):
        if host != now:
            one.do("container", host)
            now = host
        answer = one.ask(verb, *words)
        if answer.word != expected.word or (answer.word == "ok" and answer != expected):
            wrong.append(f"HOSTNAME={host!r} {verb} {words}: {answer}, not {expected}")
        if verb == "container":
            now = None
    assert not wrong, f"{len(wrong)} answers differ from names.tsv:\n" + "\n".join(wrong[:20])


@rule("NAME-2", "A container's name is HOSTNAME, made safe by one rule: as in names.tsv.", "names")
def containers(scene: Scene, one: Adapter) -> None:
    agree_with_vectors(one, "container")


@rule("NAME-1", "A HOSTNAME that names nobody counts as none: empty, blank, default, localhost.", "names")
def nobody(scene: Scene, one: Adapter) -> None:
    without = one.ask("container", "")
    for raw in (
        " ",
        "\t",
        "default",
        "DEFAULT",
        "localhost",
        "localhost.localdomain",
        "(none)",
        "Unknown",
        " default ",
    ):
        assert one.ask("container", raw)[: 1 if without.word == "error" else 2] == without, f"HOSTNAME={raw!r}"


@rule("NAME-3", "Names of the forms container and log are built, or refused, as in names.tsv.", "names")
def built(scene: Scene, one: Adapter) -> None:
    agree_with_vectors(one, "build-container", "build-log")


@rule("NAME-6", "Names are parsed, or refused, as in names.tsv.", "names")
def parsed(scene: Scene, one: Adapter) -> None:
    agree_with_vectors(one, "parse")


@rule(
    "NAME-6",
    "What one builds, in each form, the other parses back: by its own HOSTNAME, and by the names it is given.",
    "names",
    "names",
)
def round_trip(scene: Scene, builder: Adapter, parser: Adapter) -> None:
    for raw in HOSTILE:
        (container,) = builder.do("container", raw)
        for name in NAMES:
            forms = {
                "container": (builder.do("build-container", "results", name)[0], name, ""),
                "unique": (builder.do("build-unique", "results", name)[0], name, ""),
            }
            log = builder.do("build-log", "results", "2026-01-31")[0]
            forms["log"] = (log, log.removeprefix("results/"), "2026-01-31")
            for host, known in ((raw, ()), ("elsewhere", (container, "another"))):
                parser.do("container", host)
                for form, (path, wanted, day) in forms.items():
                    found = parser.do("parse", path, *known)
                    assert found[:4] == (form, wanted, container, day), f"{path!r} with HOSTNAME={host!r}: {found}"


@rule(
    "NAME-5",
    "Unique names differ: between calls, between processes of one container, and in a parse of each.",
    "names",
    "names",
    ordered=False,
)
def unique(scene: Scene, one: Adapter, other: Adapter) -> None:
    paths, makers = [], []
    for adapter in (one, other, scene.another(one)):
        adapter.do("container", "web")
        made = [adapter.do("build-unique", "results", "a.json")[0] for _ in range(3)]
        found = [adapter.do("parse", path) for path in made]
        assert len({worker for *_, worker, _ in found}) == 1
        assert len({count for *_, count in found}) == len(made)
        paths += made
        makers.append(found[0][4])
    assert len(set(paths)) == len(paths), paths
    assert len(set(makers)) == len(makers), makers


@rule("NAME-3", "Two languages agree on any name, built and parsed.", "names", "names", ordered=False)
def random_names(scene: Scene, one: Adapter, other: Adapter) -> None:
    chance = random.Random(SEED)
    for _ in range(RANDOM):
        raw, name = ("".join(chance.choices(ALPHABET, k=chance.randint(1, 14))) for _ in range(2))
        for request in (
            ("container", unicodedata.normalize("NFC", raw)),
            ("build-container", "results", name),
            ("parse", name),
            ("parse", f"{name}_{raw}.json"),
            ("parse", name, raw),
        ):
            answers = [adapter.ask(*request) for adapter in (one, other)]
            words = {answer.word for answer in answers}
            assert words == {"error"} or (len(set(answers)) == 1), f"HOSTNAME={raw!r} {request}: {answers}"
