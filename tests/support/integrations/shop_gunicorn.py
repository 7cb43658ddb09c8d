"""A configuration of gunicorn."""

import flask
import starlette.applications
import uvicorn_worker

from sharedvol.integrations.gunicorn import hooks
from support.integrations.shop_service import service

PRELOADED = [flask, starlette, uvicorn_worker]  # once, so that each worker need not: that only saves time
globals().update(hooks(service))
control_socket_disable = True
