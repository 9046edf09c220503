"""A TCP proxy on a port of loopback that is slow, loses what goes through it, or damages it."""

import contextlib
import random
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass
class Wire:
    """What happens to each piece of what is sent, and what did; a piece is what one read of a socket gave.

    `seconds` are the least and the most that it takes. Of `lost` pieces nothing arrives, nor of any after it on that
    connection, which stays open. `damaged` is the share of bytes of answers that arrive as others.
    """

    seconds: tuple[float, float] = (0.0, 0.0)
    lost: float = 0.0
    damaged: float = 0.0
    pieces: int = 0
    pieces_lost: int = 0
    bytes_damaged: int = 0
    chance: random.Random = field(default_factory=lambda: random.Random(7))

    def through(self, piece: bytes, *, answer: bool) -> bytes | None:
        """What arrives of it; None for nothing."""
        self.pieces += 1
        time.sleep(self.chance.uniform(*self.seconds))
        if self.chance.random() < self.lost:
            self.pieces_lost += 1
            return None
        if answer and self.damaged:
            # What is asked is signed, which DynamoDB checks and its stand-ins do not.
            damaged = [place for place in range(len(piece)) if self.chance.random() < self.damaged]
            self.bytes_damaged += len(damaged)
            changed = bytearray(piece)
            for place in damaged:
                changed[place] ^= self.chance.randrange(1, 256)
            return bytes(changed)
        return piece


@contextlib.contextmanager
def through(wire: Wire, endpoint: str) -> Iterator[str]:
    """The endpoint by way of the wire."""
    target = urlsplit(endpoint)
    place = (target.hostname or "", target.port or 80)
    listening = socket.create_server(("127.0.0.1", 0))
    open_sockets: list[socket.socket] = [listening]

    def accept() -> None:
        while True:
            try:
                client, _ = listening.accept()
            except OSError:
                return
            server = socket.create_connection(place)
            open_sockets.extend((client, server))
            threading.Thread(target=carry, args=(client, server, False), daemon=True).start()
            threading.Thread(target=carry, args=(server, client, True), daemon=True).start()

    def carry(source: socket.socket, sink: socket.socket, answer: bool) -> None:
        with contextlib.suppress(OSError):
            while piece := source.recv(65_536):
                arrives = wire.through(piece, answer=answer)
                if arrives is None:
                    # The end that waits finds out by its own patience.
                    return
                sink.sendall(arrives)
            sink.shutdown(socket.SHUT_WR)

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        for one in open_sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
