"""Addresses of this machine, and taking a port before anything is loaded, so that one in use is said at once."""

import errno
import ipaddress
import socket

from mlx_finetune.errors import RunError, UsageError


def is_loopback(host: str) -> bool:
    """True for an address that only this machine can reach."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_address(host: str) -> bool:
    """True for an IP address, False for a name and for what is neither."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def take_port(host: str, port: int) -> socket.socket:
    """A bound socket. Raises ``RunError`` for a port that is taken, ``UsageError`` for a host that is not here."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise UsageError(f"--host {host}: {error.strerror}", "use 127.0.0.1") from None
    taken = socket.socket(family, kind, protocol)
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
        taken.listen(2048)
    except OSError as error:
        taken.close()
        if error.errno == errno.EADDRINUSE:
            raise RunError(
                f"port {port} is taken: another server is running there", "choose another, or any free one: --port 0"
            ) from None
        if error.errno == errno.EACCES:
            raise RunError(f"port {port} is not for ordinary users", "choose one above 1023") from None
        raise UsageError(f"--host {host} --port {port}: {error.strerror}", "use --host 127.0.0.1") from None
    taken.set_inheritable(False)
    return taken
