"""Errors that are pickled or copied, as process pools, task queues and test runners do with them."""

from __future__ import annotations

import copy
import importlib
import inspect
import pickle
import pkgutil
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

import sharedvol
import sharedvol_sidecar
from sharedvol import DatabaseError

VALUES = {
    "errno": 28,
    "patience": 2.0,
    "waited": 1.5,
    "cause": DatabaseError("gone", 2013, lost=True),
    "whole": True,
    "code": 74,
}

WAYS: list[Callable[[Any], Any]] = [
    *(lambda error, number=number: pickle.loads(pickle.dumps(error, number)) for number in range(6)),
    copy.copy,
    copy.deepcopy,
]


def modules(package: ModuleType) -> list[ModuleType]:
    names = [one.name for one in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    return [importlib.import_module(name) for name in names if not name.endswith("__main__")]


CLASSES = sorted(
    {
        found
        for package in (sharedvol, sharedvol_sidecar)
        for module in modules(package)
        for found in vars(module).values()
        if inspect.isclass(found) and issubclass(found, BaseException) and found.__module__ == module.__name__
    },
    key=lambda found: f"{found.__module__}.{found.__qualname__}",
)


def make(kind: type[BaseException]) -> BaseException:
    """One with a value for every parameter of its constructor."""
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]  # without self
    places = [VALUES.get(one.name, one.name) for one in parameters if one.kind is not one.KEYWORD_ONLY]
    return kind(*places, **{one.name: VALUES.get(one.name) for one in parameters if one.kind is one.KEYWORD_ONLY})


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_a_copy_of_an_error_has_its_text_attributes_and_notes(kind: type[BaseException]) -> None:
    error = make(kind)
    error.add_note("while loading job 7")
    error.job = 7  # type: ignore[attr-defined]
    named = {name: getattr(error, name, None) for name in dir(error) if not name.startswith("__")}
    attributes = {name: repr(value) for name, value in named.items() if not callable(value)}
    for way in WAYS:
        again = way(error)
        assert type(again) is kind
        assert (str(again), repr(again), again.__notes__) == (str(error), repr(error), ["while loading job 7"])
        assert {name: repr(getattr(again, name, None)) for name in attributes} == attributes


def test_the_classes_are_found() -> None:
    assert {kind.__name__ for kind in CLASSES} > {
        "LockTimeout",
        "MigrationFailed",
        "LintError",
        "CommandFailed",
        "CannotRun",
    }
