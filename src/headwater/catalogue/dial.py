"""Opening an HTTP connection within one deadline: name resolution, every address and the TLS handshake together.

The library's time-out counts anew for each address and not at all for the resolver; a host that swallows packets would
hold a pull for a minute and more.
"""

import http.client
import queue
import socket
import ssl
import threading
import time
import urllib.request
from base64 import b64encode
from urllib.parse import SplitResult, unquote, urlsplit

from headwater.catalogue.failures import SourceFailed, SourceUnreachable


def connect(url: SplitResult, *, connect_timeout_s: float) -> tuple[http.client.HTTPConnection, str, dict[str, str]]:
    """An open connection towards `url`, the target to ask for on it, and headers for the proxy if there is one.

    The proxy is the environment's (`https_proxy`, `http_proxy`, `no_proxy`).
    Raises SourceUnreachable, or SourceFailed for a proxy that can't be used.
    """
    host, port = url.hostname or "", url.port or (443 if url.scheme == "https" else 80)
    proxy = _proxy(url.scheme, host)
    target = url._replace(scheme="", netloc="", fragment="").geturl() or "/"
    headers: dict[str, str] = {}
    connection: http.client.HTTPConnection
    first_hop = (proxy.hostname or "", proxy.port or 80) if proxy else (host, port)
    if url.scheme == "https":
        connection = http.client.HTTPSConnection(
            *first_hop, timeout=connect_timeout_s, context=ssl.create_default_context()
        )
        if proxy:
            connection.set_tunnel(host, port, headers=_proxy_headers(proxy))
    else:
        connection = http.client.HTTPConnection(*first_hop, timeout=connect_timeout_s)
        if proxy:
            target, headers = f"http://{host}:{port}{target}", _proxy_headers(proxy)
    # The library's own hook for this; without it we would connect all the same, only less strictly bounded.
    connection._create_connection = lambda address, *_: dial(*address, timeout_s=connect_timeout_s)  # type: ignore[attr-defined]
    through = f" through the proxy {proxy.hostname}" if proxy else ""
    try:
        connection.connect()
    except TimeoutError as error:
        raise SourceUnreachable(f"{host}{through} can't be reached: no answer in {connect_timeout_s:g} s") from error
    except (OSError, http.client.HTTPException) as error:
        raise SourceUnreachable(f"{host}{through} can't be reached: {_reason(error)}") from error
    return connection, target, headers


def dial(host: str, port: int, *, timeout_s: float) -> socket.socket:
    """A connected TCP socket. Raises OSError (TimeoutError after `timeout_s` in all, name resolution included)."""
    deadline = time.monotonic() + timeout_s
    addresses = _resolve(host, port, timeout_s)
    failure: OSError = TimeoutError("no answer")
    for index, (family, kind, protocol, _, address) in enumerate(addresses):
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            break
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(left_s / (len(addresses) - index))
            sock.connect(address)
            sock.settimeout(max(0.1, deadline - time.monotonic()))  # for the handshake that may follow
        except OSError as error:
            sock.close()
            failure = error
        else:
            return sock
    raise failure


_Address = tuple[
    socket.AddressFamily, socket.SocketKind, int, str, tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]
]


def _resolve(host: str, port: int, timeout_s: float) -> list[_Address]:
    """Ask the resolver on a thread, which is left behind if it doesn't answer: it can't be interrupted."""
    answers: queue.SimpleQueue[list[_Address] | OSError] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))
        except OSError as error:
            answers.put(error)
        except UnicodeError:  # a label too long or empty for a domain name
            answers.put(socket.gaierror(socket.EAI_NONAME, "this is no host name"))

    threading.Thread(target=ask, name="resolve", daemon=True).start()
    try:
        answer = answers.get(timeout=timeout_s)
    except queue.Empty as error:
        raise TimeoutError("the name was not resolved in time") from error
    if isinstance(answer, OSError):
        raise answer
    return answer


def _proxy(scheme: str, host: str) -> SplitResult | None:
    written = urllib.request.getproxies().get(scheme)
    if not written or urllib.request.proxy_bypass(host):
        return None
    proxy = urlsplit(written if "://" in written else f"http://{written}")
    if proxy.scheme != "http" or not proxy.hostname:
        raise SourceFailed(
            f"the environment names a {proxy.scheme or 'nameless'} proxy; only http:// proxies can be used"
        )
    return proxy


def _proxy_headers(proxy: SplitResult) -> dict[str, str]:
    return {"Proxy-Authorization": basic(proxy)} if proxy.username else {}


def basic(url: SplitResult) -> str:
    """The value of an Authorization header for the user and password in `url`."""
    pair = f"{unquote(url.username or '')}:{unquote(url.password or '')}"
    return "Basic " + b64encode(pair.encode()).decode()


def _reason(error: Exception) -> str:
    if isinstance(error, socket.gaierror):
        return "its name is not known here"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({error.verify_message})"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__
