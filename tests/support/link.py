"""A network that a test can cut: a proxy before a database server, which reads what clients send packet by packet."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import socket
import threading
from collections.abc import Callable, Iterator

from support.processes import LIMIT
from support.servers import Endpoint, Server, free_port

# https://dev.mysql.com/doc/dev/mysql-server/latest/page_protocol_basic_packets.html: the payload's length in three
# bytes, a sequence number in one, the payload. The greeting, whose payload begins with 10: the server's version up to
# a zero byte, 13 bytes, then the low half of the capabilities.
_HEAD = 4
_GREETING = 10
_OK = 0
_QUIT = b"\x01"
_TLS = 0x08  # CLIENT_SSL, 0x0800, in the second byte of the capabilities

_libc = ctypes.CDLL(None)


class Link(Endpoint):
    """A port of its own in front of ``server``; use it in a ``with``.

    It works without TLS, because it could not read that: it takes the offer out of the server's greeting.
    What a client says after its handshake is recorded, but for its good-bye (COM_QUIT), which has no answer.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self.packets: list[bytes] = []
        """What clients sent: a command byte (3 for a statement), then the command's text."""
        self.round_trips = 0
        """How often a client sent something and then needed an answer to go on."""
        self._cut: Callable[[bytes], bool] | None = None
        self._delivered = True
        self._wires: set[_Wire] = set()
        self._kept: list[socket.socket] = []
        self._open = asyncio.Event()
        self._open.set()
        self._flow = asyncio.Event()
        self._flow.set()
        # Asked for by number, it stays ours while refuse() holds; one of the kernel's choice would be given away.
        self._listener = socket.create_server(("127.0.0.1", free_port()), backlog=128)
        self._listener.setblocking(False)
        super().__init__(self._listener.getsockname()[1])
        self._loop = asyncio.new_event_loop()
        self._accepting = self._loop.create_task(self._accept())
        self._thread = threading.Thread(target=self._loop.run_forever, name="link", daemon=True)
        self._thread.start()

    def clear(self) -> None:
        """Forget what was counted and recorded."""
        self.packets = []
        self.round_trips = 0

    def drop(self, *, server_notices: bool = True) -> None:
        """Reset all connections at once.

        Args:
            server_notices: Else it goes on with each as if the client were only silent, until the next `drop`.
        """
        self._do(lambda: self._drop_all(server_notices))

    def drop_after(self, packets: int, *, delivered: bool = True) -> None:
        """Once: reset the connection that sends the last of that many more packets, as `drop_on` does."""
        left = packets

        def is_last(_: bytes) -> bool:
            nonlocal left
            left -= 1
            return left == 0

        self._arm(is_last, delivered)

    def drop_on(self, text: bytes, *, delivered: bool = True) -> None:
        """Once: reset the connection that sends a packet with ``text`` in it.

        Args:
            text: Such as ``b"COMMIT"``.
            delivered: The server obeys, and it is the answer that is lost. Else the packet never arrives.
        """
        self._arm(lambda packet: text in packet, delivered)

    def refuse(self) -> None:
        """Refuse new connections (ECONNREFUSED), until `accept`; those that are there go on."""

        def close() -> None:
            self._open.clear()
            self._listener.shutdown(socket.SHUT_RDWR)  # it stays bound

        self._do(close)

    def accept(self) -> None:
        """Take new connections again."""

        def listen() -> None:
            self._listener.listen(128)
            self._open.set()

        self._do(listen)

    def hold(self) -> None:
        """Let nothing through, in either direction, until `release`. Connections stay, new ones are taken."""
        self._do(self._flow.clear)

    def release(self) -> None:
        """Let through what was held, and what comes."""
        self._do(self._flow.set)

    def close(self) -> None:
        """Reset all connections, and end."""

        async def end() -> None:
            self._accepting.cancel()
            wires = [wire.task for wire in self._wires]
            self._drop_all()
            await asyncio.gather(self._accepting, *wires, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(LIMIT)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(LIMIT)
        self._loop.close()
        self._listener.close()

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _drop_all(self, server_notices: bool = True) -> None:
        for sock in self._kept:
            _reset(sock)
            sock.close()
        self._kept.clear()
        for wire in list(self._wires):
            wire.drop(server_notices)

    def _is_cut_at(self, packet: bytes) -> bool:
        """Whether ``packet`` is what `drop_after` or `drop_on` waits for."""
        due = self._cut is not None and self._cut(packet)
        if due:
            self._cut = None
        return due

    def _arm(self, is_due: Callable[[bytes], bool], delivered: bool) -> None:
        def arm() -> None:
            self._cut, self._delivered = is_due, delivered

        self._do(arm)

    def _do(self, action: Callable[[], object]) -> None:
        """Run ``action`` in the proxy's thread, which alone touches the sockets, and wait for its end."""

        async def run() -> None:
            action()

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(LIMIT)

    async def _accept(self) -> None:
        while True:
            await self._open.wait()
            with contextlib.suppress(OSError):  # refuse() interrupts
                client, _ = await self._loop.sock_accept(self._listener)
                _Wire(self, client)


class _Wire:
    """One connection through a `Link`: a socket to the client, one to the server, a task for each direction."""

    def __init__(self, link: Link, client: socket.socket) -> None:
        self.link = link
        self.client = client
        self.upstream = socket.socket()
        self.is_shaken = False
        self.is_answered = True
        self.is_doomed = False
        for sock in (client, self.upstream):
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # its delay would double the tests' time
        link._wires.add(self)
        self.task = asyncio.create_task(self._run())
        self.task.add_done_callback(self._close)

    def drop(self, server_notices: bool = True) -> None:
        """Reset both sides, or the client's alone."""
        if server_notices:
            _reset(self.upstream)
        else:
            self.link._kept.append(self.upstream)
            self.upstream = socket.socket()
        _reset(self.client)
        self.task.cancel()

    async def _run(self) -> None:
        """Until either side ends, which ends the other."""
        both: list[asyncio.Task[None]] = []
        try:
            with contextlib.suppress(OSError):  # the server is down
                await asyncio.get_running_loop().sock_connect(self.upstream, ("127.0.0.1", self.link.server.port))
                both = [asyncio.create_task(self._requests()), asyncio.create_task(self._replies())]
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)

    def _close(self, _: asyncio.Task[None]) -> None:
        for sock in (self.client, self.upstream):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)  # close() alone says nothing while a forked child has it too
            sock.close()
        self.link._wires.discard(self)

    async def _requests(self) -> None:
        loop, packets = asyncio.get_running_loop(), _Packets()
        while data := await loop.sock_recv(self.client, 65536):
            for packet in packets.feed(data):
                payload = packet[_HEAD:]
                counts = self.is_shaken and payload != _QUIT
                if counts:
                    self.link.packets.append(payload)
                    self.link.round_trips += self.is_answered
                    self.is_answered = False
                await self.link._flow.wait()
                if counts and self.link._is_cut_at(payload):
                    if not self.link._delivered:
                        return self.drop()
                    self.is_doomed = True
                await loop.sock_sendall(self.upstream, packet)
        return None

    async def _replies(self) -> None:
        loop, packets = asyncio.get_running_loop(), _Packets()
        while data := await loop.sock_recv(self.upstream, 65536):
            await self.link._flow.wait()
            if self.is_doomed:
                return self.drop()
            if self.is_shaken:
                self.is_answered = True
                await loop.sock_sendall(self.client, data)
                continue
            for packet in packets.feed(data):
                self.is_shaken = self.is_shaken or packet[_HEAD] == _OK
                await loop.sock_sendall(self.client, _without_tls(packet) if packet[_HEAD] == _GREETING else packet)
        return None


class _Packets:
    """Cuts a stream into packets, heads included."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Those that are whole now."""
        self._buffer += data
        while len(self._buffer) >= _HEAD:
            size = _HEAD + int.from_bytes(self._buffer[:3], "little")
            if len(self._buffer) < size:
                return
            packet = bytes(self._buffer[:size])
            del self._buffer[:size]
            yield packet


def _without_tls(greeting: bytes) -> bytes:
    capabilities = greeting.index(0, _HEAD + 1) + 1 + 13
    changed = bytearray(greeting)
    changed[capabilities + 1] &= ~_TLS
    return bytes(changed)


def _reset(sock: socket.socket) -> None:
    """Send RST at once, and forget the connection, also for forked children that hold the socket too.

    connect(2): "connecting to AF_UNSPEC dissolves the association". AF_UNSPEC is 0.
    """
    if sock.fileno() >= 0:
        _libc.connect(sock.fileno(), bytes(16), 16)
