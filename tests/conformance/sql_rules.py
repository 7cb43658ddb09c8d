"""The rules of SQL scripts: taken apart alike in every language, as the stock clients do."""

from __future__ import annotations

import random
from pathlib import Path

from adapter import Adapter
from name_rules import decode
from rules import Scene, rule

VECTORS = Path(__file__).with_name("sql.tsv")

PIECES = "; // $$ $a$ ' '' \" ` `` \\ \\' -- --x # /* */ /*! /*+ SELECT 1 ü \\g \\G go".split()
PIECES += [" ", " ", "\n", "\n", "\r\n", "\t", ";\n", "-- ", "\nDELIMITER //\n", "\nDELIMITER ;\n", "delimiter go\n"]
SEED = 20260131
RANDOM = 200


@rule("SQL-2", "A script is taken apart, or refused, as in sql.tsv.", "sql")
def split(scene: Scene, one: Adapter) -> None:
    wrong = []
    for row in VECTORS.read_text().splitlines():
        script, answer = row.split("\t")
        expected = tuple(decode(word) for word in answer.split(" "))
        found = one.ask("split", decode(script))
        if (found.word, *found.rest)[: 1 if expected[0] == "error" else None] != expected:
            wrong.append(f"{decode(script)!r}: {found}, not {expected}")
    assert not wrong, f"{len(wrong)} answers differ from sql.tsv:\n" + "\n".join(wrong[:20])


@rule("SQL-2", "Two languages take any script apart alike, or both refuse it.", "sql", "sql", ordered=False)
def random_scripts(scene: Scene, one: Adapter, other: Adapter) -> None:
    chance = random.Random(SEED)
    for _ in range(RANDOM):
        script = "".join(chance.choices(PIECES, k=chance.randint(1, 12)))
        answers = [adapter.ask("split", script) for adapter in (one, other)]
        words = {answer.word for answer in answers}
        assert words == {"error"} or len(set(answers)) == 1, f"{script!r}: {answers}"
