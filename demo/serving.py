"""Serving: protection of any page.

Guard            refuses cross-origin requests and limits logins
read_auth        other machines need a password
"""

import ipaddress
import time
from collections import deque
from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.responses import PlainTextResponse

HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"content-security-policy": b"frame-ancestors 'self'",
}
LOGINS_A_MINUTE = 10


class Guard:
    """Middleware that refuses cross-origin requests and limits logins.

    `hosts` are the host names of this server, empty if unknown.
    """

    def __init__(self, app: Callable, hosts: tuple[str, ...] = ()):
        self.app, self.hosts = app, hosts
        self.logins: dict[str, deque] = {}

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        refusal = self.refusal(scope)
        if refusal is not None:
            return await refusal(scope, receive, send)

        async def send_guarded(message: dict) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *HEADERS.items()]
            await send(message)

        await self.app(scope, receive, send_guarded)

    def refusal(self, scope: dict) -> PlainTextResponse | None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        try:
            name, site = urlsplit(f"//{host}").hostname, urlsplit(origin or "").netloc
        except ValueError:  # for example brackets without an IPv6 address
            return PlainTextResponse("host and origin must be addresses", 400)
        if self.hosts and name not in self.hosts:
            return PlainTextResponse("this server goes by another name", 400)
        if origin is not None and site != host:
            return PlainTextResponse("requests of other sites are refused", 403)
        if scope["method"] == "POST" and scope["path"].rstrip("/").endswith("/login"):
            return self.too_many_logins(scope["client"][0])
        return None

    def too_many_logins(self, visitor: str) -> PlainTextResponse | None:
        now = time.monotonic()
        self.logins = {who: at for who, at in self.logins.items() if at[-1] > now - 60}
        times = self.logins.setdefault(visitor, deque(maxlen=LOGINS_A_MINUTE))
        if len(times) == LOGINS_A_MINUTE and times[0] > now - 60:
            return PlainTextResponse("too many logins, wait a minute", 429)
        times.append(now)
        return None


def is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_auth(host: str, auth: str | None) -> tuple[str, str] | None:
    """(user, password) of "USER:PASSWORD"; ValueError if other machines had access without."""
    user, colon, password = (auth or "").partition(":")
    if auth is not None and not (user and password):
        raise ValueError("--auth must be USER:PASSWORD, got no user or no password")
    if auth is None and not is_this_machine(host):
        raise ValueError(
            f"--host {host} lets others in, so --auth USER:PASSWORD must be given, got none"
        )
    return (user, password) if colon else None
