"""A configuration of gunicorn."""

from shop_service import service

from sharedvol.integrations.gunicorn import hooks

globals().update(hooks(service))
control_socket_disable = True
