"""Talk HTTP down to the bytes, as no HTTP library would."""

import json
import socket
import struct
from urllib.parse import urlsplit

from serving import Server


def connect(server: Server, timeout_s: float = 30) -> socket.socket:
    address = urlsplit(server.url)
    return socket.create_connection((address.hostname, address.port), timeout=timeout_s)


def chat_request(bearer_token: str, body: dict[str, object], *headers: str) -> bytes:
    """Return a chat request as it goes over the wire."""
    sent = json.dumps(body).encode()
    lines = ["POST /v1/chat/completions HTTP/1.1", "Host: x", "Content-Type: application/json"]
    lines += [f"Authorization: Bearer {bearer_token}", f"Content-Length: {len(sent)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + sent


def read_all(connection: socket.socket) -> bytes:
    """Read until the other side closes, or for as long as the connection's timeout."""
    got = b""
    try:
        while data := connection.recv(65536):
            got += data
    except ConnectionResetError:
        pass  # the end all the same
    return got


def reset(connection: socket.socket) -> None:
    """Close the connection with a reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
