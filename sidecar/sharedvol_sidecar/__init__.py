"""The service that collects what replicas write, and loses nothing."""
