"""The image's health check: is this replica ready? No shell and no curl; a health check is a command without spaces."""

import sys
import urllib.error
import urllib.request

try:
    urllib.request.urlopen("http://127.0.0.1:8000/health/ready", timeout=4)
except urllib.error.HTTPError as error:
    sys.exit(error.read(500).decode())  # why, for `docker inspect`
except OSError as error:
    sys.exit(str(error))
