"""Health checks for Flask. With gunicorn, also use `sharedvol.integrations.gunicorn`, which starts and drains.

::

    app = Flask(__name__)
    init_app(app, service)
"""

from __future__ import annotations

from flask import Flask, Response, jsonify

from sharedvol.health import LIVE_PATH, READY_PATH, HealthReport
from sharedvol.integrations.service import Service
from sharedvol.integrations.wsgi import at_request, prepare


def init_app(app: Flask, service: Service, *, live_path: str = LIVE_PATH, ready_path: str = READY_PATH) -> None:
    """Add the two health checks, and set ``app.extensions["sharedvol"]`` to the service.

    The first request starts a service that has not been started, as `sharedvol.integrations.wsgi.HealthMiddleware`
    does.

    Args:
        app: the application.
        service: the service that answers.
        live_path: the path of the liveness check.
        ready_path: the path of the readiness check.
    """
    app.extensions["sharedvol"] = service
    prepare(service)
    app.before_request(lambda: at_request(service))
    app.add_url_rule(live_path, "sharedvol_live", lambda: _json(service.live()))
    app.add_url_rule(ready_path, "sharedvol_ready", lambda: _json(service.ready()))


def _json(report: HealthReport) -> Response:
    response = jsonify(report.body)
    response.status_code = report.code
    response.headers["Cache-Control"] = "no-store"
    return response
