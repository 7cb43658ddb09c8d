"""A Flask application."""

from __future__ import annotations

from typing import Any

from flask import Flask
from shop_service import about, service, wait

from sharedvol.integrations.flask import init_app

app = Flask(__name__)
init_app(app, service)


@app.get("/")
def root() -> dict[str, Any]:
    return about()


@app.get("/slow")
def slow() -> dict[str, Any]:
    wait("slow")
    return about()
