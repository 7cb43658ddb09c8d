"""Every rule, with every adapter or pair of adapters it is about. See README.md."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from adapter import Missing
from kinds import GIVEN, Cast, all_kinds, leave_out, seatings
from rules import RULES


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seating" not in metafunc.fixturenames:
        return
    kinds = all_kinds(metafunc.config)
    cases = [
        pytest.param(key, names, id="-".join((key, *names)), marks=pytest.mark.skip(reason=why) if why else ())
        for key, names, why in seatings(kinds, GIVEN in kinds)
    ]
    metafunc.parametrize("key, seating", cases)


def test_rule(key: str, seating: tuple[str, ...], cast: Callable[[tuple[str, ...]], Cast]) -> None:
    try:
        with cast(seating) as scene:
            RULES[key].check(scene, *scene.seats)
    except Missing as error:
        leave_out(error)
