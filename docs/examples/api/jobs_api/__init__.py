"""A small API that may have many replicas: it takes orders, works, and publishes results on a shared volume."""
