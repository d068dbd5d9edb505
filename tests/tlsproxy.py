"""A proxy that is itself spoken to by TLS, through which programs reach a server by TLS within that."""

import select
import socket
import ssl

from rawhttp import RawProvider, read_until


class TlsProxy(RawProvider):
    """Let each connection through to the server of this machine that its CONNECT names."""

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__(context)
        self.named: list[bytes] = []

    def answer(self, connection: socket.socket, number: int) -> None:
        """Connect, say so, and hand on what comes from either side until one of them closes."""
        head = read_until(connection, b"\r\n\r\n")
        self.named.append(head.split()[1])
        with socket.create_connection(("127.0.0.1", int(head.split()[1].rpartition(b":")[2]))) as server:
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            try:
                while hand_on(connection, server):
                    pass
            except OSError:
                return  # one of them closed in the middle of a record, or with a reset


def hand_on(client: socket.socket, server: socket.socket) -> bool:
    """Wait for either side and hand on what came of it; return False where it is the end."""
    ready, _, _ = select.select([client, server], [], [])
    for source, target in ((client, server), (server, client)):
        if source in ready:
            data = source.recv(65536)  # TLS's records are smaller, so that none stays behind
            if not data:
                return False
            target.sendall(data)
    return True
