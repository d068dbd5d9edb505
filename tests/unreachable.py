"""Servers at which no provider is: what one meets who has mistyped an address."""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import trustme
from serving import free_port


@contextmanager
def greeting(greet: Callable[[socket.socket], object]) -> Iterator[int]:
    """Yield the port of a server that does this with its first connection, and closes it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection, suppress(OSError):
                greet(connection)

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]


@contextmanager
def ports_of_others() -> Iterator[dict[str, int]]:
    """Yield ports: where nobody is, without TLS, with a certificate that nobody has heard of, and of a mail server."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("localhost").configure_cert(context)
    plain = greeting(lambda connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"))
    tls = greeting(lambda connection: context.wrap_socket(connection, server_side=True))
    mail = greeting(lambda connection: connection.sendall(b"220 mail.example.org ESMTP\r\n"))
    with plain as plain_port, tls as tls_port, mail as mail_port:
        yield {"none": free_port(), "plain": plain_port, "tls": tls_port, "mail": mail_port}
