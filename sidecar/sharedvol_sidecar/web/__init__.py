"""The HTTP side of the service: checks, metrics and a status page. Imports nothing by itself."""
