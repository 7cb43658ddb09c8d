"""A server that misbehaves as it is told: `Stub` in a test, or this file as a program."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

if __name__ != "__main__":
    from support.installed import DIE_WITH_US
    from support.processes import LIMIT


class Handler(BaseHTTPRequestHandler):
    """Obeys the first word of the path, which may name the only server that is to obey; tells the body back.

    ``die`` kills the server before the answer, ``cut`` within it, ``drop`` closes a connection that was used before,
    ``code`` answers with the status that follows, ``ready`` sets the one of ``/health/ready``.
    """

    protocol_version = "HTTP/1.1"
    ready = 200
    used = False

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        what, _, argument = self.path[1:].partition("/")
        what, _, whom = what.partition("-")
        self.used, used = True, self.used
        if what == "health":
            return self.say(Handler.ready, b"")
        if whom not in ("", self.server.name):  # type: ignore[attr-defined]
            what = ""
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "cut":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"4\r\nhalf\r\n")
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "drop" and used:
            self.close_connection = True
            return None
        if what == "ready":
            Handler.ready = int(argument)
        return self.say(int(argument) if what == "code" else 200, body)

    def say(self, code: int, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Replica", self.server.name)  # type: ignore[attr-defined]
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass

    do_GET = do_PUT = do_POST = handle_any


class Stub:
    """The program, on a port that it keeps when it is started again.

    Args:
        name: what it answers as ``X-Replica``.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.port = 0
        self._process: subprocess.Popen[str] | None = None
        self.start()

    def start(self) -> None:
        """Returns when it answers."""
        self._process = subprocess.Popen(
            [*DIE_WITH_US, sys.executable, "-S", __file__, self.name, str(self.port)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def await_end(self) -> None:
        """It died by a request; reap it."""
        assert self._process is not None
        assert self._process.wait(LIMIT) == -signal.SIGKILL
        self._reap()

    def stop(self) -> None:
        """SIGSTOP: it answers nothing, and the kernel still accepts connections for it."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def kill(self) -> None:
        """SIGKILL, and reap."""
        assert self._process is not None
        self._process.kill()
        self._reap()

    def _reap(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        self._process.wait(LIMIT)
        self._process.stdout.close()
        self._process = None

    def close(self) -> None:
        if self._process is not None:
            self.kill()


class Server(ThreadingHTTPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128
    name = ""


if __name__ == "__main__":
    server = Server(("127.0.0.1", int(sys.argv[2])), Handler)
    server.name = sys.argv[1]
    print(server.server_address[1], flush=True)
    server.serve_forever()
