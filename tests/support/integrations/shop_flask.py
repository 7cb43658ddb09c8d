"""A Flask application."""

from __future__ import annotations

from typing import Any

from flask import Flask

from sharedvol import FileLock
from sharedvol.integrations.flask import init_app
from support.integrations.shop_service import HERE, about, service, wait

app = Flask(__name__)
init_app(app, service)


@app.get("/")
def root() -> dict[str, Any]:
    return about()


@app.get("/slow")
def slow() -> dict[str, Any]:
    wait("slow")
    return about()


@app.get("/locked")
def locked() -> dict[str, Any]:
    with FileLock(HERE / "shop.lock"):
        wait("slow")
        return about()
