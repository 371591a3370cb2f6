"""Who may connect: answered over HTTP before there is a websocket."""

from __future__ import annotations

import hmac
from http import HTTPStatus

from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request, Response

HEALTH_PATH = "/healthz"


def authorization(api_key: str) -> str:
    """Value of the Authorization header, as openpi's client sends it."""
    return f"Api-Key {api_key}"


def answer_handshake(
    connection: ServerConnection, request: Request, *, api_key: str | None, full: str
) -> Response | None:
    """Return the HTTP answer that ends a request, or None where a websocket may open.

    `/healthz` needs no key: it says "OK" and nothing else. Browsers name the page that opened the
    connection; none has any business here, and a page of the open internet could otherwise reach a
    server on the loopback interface.

    Args:
        connection: The connection under way.
        request: Its HTTP request.
        api_key: The key that must be given; None lets everybody in.
        full: Why no further client is taken; empty if one is.
    """
    if request.path == HEALTH_PATH:
        return connection.respond(HTTPStatus.OK, "OK\n")
    if "Origin" in request.headers:
        return connection.respond(HTTPStatus.FORBIDDEN, "Web pages may not use this server.\n")
    if api_key is not None and not _has_key(request, api_key):
        return connection.respond(
            HTTPStatus.UNAUTHORIZED,
            "This server wants the header `Authorization: Api-Key <key>` with its own key.\n",
        )
    if full:
        return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, full + "\n")
    return None


def _has_key(request: Request, api_key: str) -> bool:
    """Compare in constant time; a header that occurs twice is no key."""
    given = request.headers.get_all("Authorization")
    return len(given) == 1 and hmac.compare_digest(
        given[0].encode("utf-8", "surrogateescape"), authorization(api_key).encode()
    )
