"""Serving: what every request passes before gradio sees it.

Site             names of the server, and the proxies whose forwarded headers count
Guard            hosts, origins, logins, paths, bodies, places in the queue; health, metrics
read_auth        other machines need a password
"""

import asyncio
import ipaddress
import json
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from urllib.parse import parse_qs, urlsplit

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, PlainTextResponse, Response

from demo.calls import API, CALL, PageFunction, read_call, read_ending
from demo.files import check_files, is_ours, tidy
from demo.worker import Refused, Worker

HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"content-security-policy": b"frame-ancestors 'self'",
}
CACHED = b"cache-control", b"private, max-age=3600"
"""Of files, whose names say what they hold: a browser need not ask for a picture twice."""
FORWARDED = (b"x-forwarded-", b"forwarded", b"x-real-ip", b"x-gradio-server")
"""How headers begin that tell of a proxy; gradio trusts them, so none is passed on."""
LOGINS_A_MINUTE = 10
MOST_BODY = 2**20
"""Bytes of a request that is no upload."""
MOST_UPLOAD = 32 * 2**20
"""Bytes of the files of one upload together."""
LISTENS = re.compile(rf"{API}/(?:queue/data|call/(?:v2/)?[^/]+/(?P<event>[^/]+))")
READS = re.compile(
    rf"{API}/(?:info|openapi\.json|app_id|user|login_check|queue/status|startup-events|theme\.css"
    r"|upload_progress|heartbeat/[\w-]{1,64})"
)
"""What the page and gradio's clients read beside results and files."""
READ_FILE = f"{API}/file="
UPLOAD = f"{API}/upload"
ENDINGS = (f"{API}/cancel", f"{API}/reset")

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Answer(Exception):
    """Raised with the response to a request that gradio is not to see."""

    def __init__(self, response: Response):
        self.response = response


def refused(sentence: str, status: int) -> Answer:
    """Under "detail" the page and gradio's clients look for the reason."""
    return Answer(JSONResponse({"detail": sentence}, status))


def nothing_here() -> Answer:
    return refused("there is nothing here", 404)


@dataclass(frozen=True)
class Site:
    """How the server is reached.

    hosts: names by which it may be addressed, empty for any; public: the name (and port) that
    visitors see, if it is behind a proxy; root: the path below which the proxy serves it; proxies:
    addresses whose forwarded headers count.
    """

    hosts: tuple[str, ...] = ()
    public: str | None = None
    root: str = ""
    proxies: tuple[Network, ...] = ()

    def seen_by_visitor(self, scope: dict) -> dict:
        """The request as its visitor sent it: address, scheme and host, without a proxy's headers.

        Raises Answer for a foreign host or origin.
        """
        found = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = found.get(b"host", ""), found.get(b"origin")
        try:
            name, site = urlsplit(f"//{host}").hostname, urlsplit(origin or "").netloc
        except ValueError:  # for example brackets without an IPv6 address
            raise refused("host and origin must be addresses", 400) from None
        if self.hosts and name not in self.hosts:
            raise refused("this server goes by another name", 400)
        if origin is not None and site not in (host, self.public):
            raise refused("requests of other sites are refused", 403)
        kept = [(name, value) for name, value in scope["headers"] if not name.startswith(FORWARDED)]
        if self.public:
            kept = [(name, value) for name, value in kept if name != b"host"]
            kept.append((b"host", self.public.encode("latin-1")))
        scope = scope | {"headers": kept}
        if scope["client"] and self.trusts(scope["client"][0]):
            scope["client"] = self.visitor(scope["client"], found.get(b"x-forwarded-for", ""))
            scheme = found.get(b"x-forwarded-proto", "").split(",")[0].strip()
            scope["scheme"] = scheme if scheme in ("http", "https") else scope["scheme"]
        return scope

    def visitor(self, client: tuple[str, int], forwarded: str) -> tuple[str, int]:
        """The last address of X-Forwarded-For that is no trusted proxy's: others can be made up."""
        for address in reversed([one.strip() for one in forwarded.split(",") if one.strip()]):
            if not self.trusts(address):
                return address[:64], 0
        return client

    def trusts(self, address: str) -> bool:
        try:
            found = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(found in network for network in self.proxies)


class Guard:
    """Middleware: what stands before the page and its endpoints.

    It refuses in one sentence: requests of other sites or for other hosts; logins tried fast; large
    or malformed bodies; calls of none of the `functions`; files that are none of this app's; jobs
    for which the `worker` has no place. Of gradio's own paths it passes on those that it uses.
    `/healthz` and `/metrics` are answered here. `kept` are the page's own files, which make no room
    for uploads.
    """

    def __init__(
        self,
        app: Callable,
        worker: Worker,
        site: Site,
        functions: Sequence[PageFunction] = (),
        kept: frozenset = frozenset(),
    ):
        self.app, self.worker, self.site, self.kept = app, worker, site, kept
        self.functions = functions
        self.logins: dict[str, deque] = {}

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def send_guarded(message: dict) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *HEADERS.items()]
                if READ_FILE in scope["path"] and message["status"] in (200, 206):
                    message["headers"].append(CACHED)
            await send(message)

        try:
            scope = self.site.seen_by_visitor(scope)
            path = self.path(scope)
            if scope["method"] == "POST":
                receive = await self.checked(scope, path, receive)
            else:
                self.answer_probes(path)
                check_read(path)
        except Answer as answer:
            return await answer.response(scope, receive, send_guarded)
        with self.listening(scope, path), suppress(ClientDisconnect):  # who leaves is no error
            await self.app(scope, receive, send_guarded)

    def path(self, scope: dict) -> str:
        """The path below the root, with or without which a proxy passes it on."""
        path, root = scope["path"], self.site.root
        path = path.removeprefix(root) if path.startswith(f"{root}/") else path
        return path if READ_FILE in path else path.rstrip("/")

    def answer_probes(self, path: str) -> None:
        if path == "/healthz":
            down = self.worker.stopped
            raise Answer(PlainTextResponse("stopped" if down else "ok", 503 if down else 200))
        if path == "/metrics":
            kind = "text/plain; version=0.0.4"
            raise Answer(PlainTextResponse(self.worker.metrics(), media_type=kind))

    def listening(self, scope: dict, path: str) -> AbstractContextManager:
        """While a visitor's stream of results is open, the worker knows."""
        found = LISTENS.fullmatch(path)
        if scope["method"] != "GET" or not found:
            return nullcontext()
        session = parse_qs(scope["query_string"].decode("latin-1")).get("session_hash", [""])
        return self.worker.listening(found["event"] or session[0])

    # ── what is sent ──────────────────────────────────────────────────────────────────────────

    async def checked(self, scope: dict, path: str, receive: Callable) -> Callable:
        """`receive` of a request whose body is fit for gradio; raises Answer if it is not."""
        if path == UPLOAD:
            await self.make_room(scope)
            return receive
        if path == "/login":
            self.limit_logins(scope["client"][0])
        elif path not in ENDINGS and not CALL.fullmatch(path):
            raise nothing_here()
        body = await read_body(receive)
        if path.startswith(API):
            body = json.dumps(self.passed(json_object(body), scope, path)).encode()
        return replayed(body, receive)

    async def make_room(self, scope: dict) -> None:
        """For an upload, of the oldest files."""
        length = dict(scope["headers"]).get(b"content-length", b"")
        if not length.isdigit():
            raise refused("an upload must state its length", 411)
        if int(length) > MOST_UPLOAD:
            most = f"an upload must have at most {MOST_UPLOAD // 2**20} MB"
            raise refused(f"{most}, got more", 413)
        await asyncio.to_thread(tidy, self.kept, int(length))

    def passed(self, request: dict, scope: dict, path: str) -> dict:
        """What of a request is passed on; raises Answer if nothing is."""
        try:
            if path in ENDINGS:
                return read_ending(request)
            check_files(request)
            function, passed = read_call(self.functions, path, request)
            if function.job:
                session = passed.get("session_hash") or ""
                self.worker.refuse_overload(scope["client"][0], session)
        except LookupError:
            raise nothing_here() from None
        except Refused as error:
            raise refused(str(error), 503 if error.full else 429) from None
        except ValueError as error:
            raise refused(str(error), 400) from None
        return passed

    def limit_logins(self, visitor: str) -> None:
        now = time.monotonic()
        self.logins = {who: at for who, at in self.logins.items() if at[-1] > now - 60}
        times = self.logins.setdefault(visitor, deque(maxlen=LOGINS_A_MINUTE))
        if len(times) == LOGINS_A_MINUTE and times[0] > now - 60:
            raise refused("too many logins, wait a minute", 429)
        times.append(now)


def check_read(path: str) -> None:
    """Raise Answer unless the page reads there: for an address, gradio would fetch it."""
    ours = path.startswith(READ_FILE) and is_ours(path.removeprefix(READ_FILE))
    if path.startswith(API) and not (ours or READS.fullmatch(path) or LISTENS.fullmatch(path)):
        raise nothing_here()


async def read_body(receive: Callable) -> bytes:
    """The body of a request, of at most `MOST_BODY` bytes."""
    body, more = bytearray(), True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > MOST_BODY:
            raise refused(f"a request must have at most {MOST_BODY // 2**20} MB, got more", 413)
    return bytes(body)


def json_object(body: bytes) -> dict:
    """A JSON object; an empty body is an empty one."""
    try:
        read = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        read = None
    if not isinstance(read, dict):
        raise refused("a request must be a JSON object, got something else", 400)
    return read


def replayed(body: bytes, receive: Callable) -> Callable:
    """`receive` that gives the body again, then what follows it."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> dict:
        return messages.pop() if messages else await receive()

    return again


# ── options ───────────────────────────────────────────────────────────────────────────────────


def site_of(host: str, public: str | None, root: str, proxies: Iterable[str]) -> Site:
    """How a server that listens on `host` is reached; ValueError for no address or no path."""
    known = is_this_machine(host) or public is not None
    name = urlsplit(f"//{host if public is None else public}").hostname
    local = ("127.0.0.1", "localhost", "::1", host) if known else ()
    if public is not None and (not name or "/" in public):
        raise ValueError(f"--public-host must be a name, or a name:port, got {public!r}")
    if root and not (root.startswith("/") and root.strip("/")):
        raise ValueError(f"--root-path must be a path such as /imagebart, got {root!r}")
    return Site((*local, name) if known else (), public, root.rstrip("/"), read_proxies(proxies))


def read_proxies(addresses: Iterable[str]) -> tuple[Network, ...]:
    """Networks of "10.0.0.1" or "10.0.0.0/8"."""
    try:
        return tuple(ipaddress.ip_network(address) for address in addresses)
    except ValueError as error:
        raise ValueError(f"--trusted-proxy must be an address or a network: {error}") from None


def is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_auth(host: str, auth: str | None, public: str | None = None) -> tuple[str, str] | None:
    """(user, password) of "USER:PASSWORD"; ValueError if other machines had access without."""
    user, colon, password = (auth or "").partition(":")
    if auth is not None and not (user and password):
        raise ValueError("--auth must be USER:PASSWORD, got no user or no password")
    if auth is None and (public is not None or not is_this_machine(host)):
        name = f"--host {host}" if public is None else f"--public-host {public}"
        raise ValueError(f"{name} lets others in, so --auth USER:PASSWORD must be given, got none")
    return (user, password) if colon else None
