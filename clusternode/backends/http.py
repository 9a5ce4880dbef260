"""`http://…` and `https://…`: events as the bodies of requests. Specified in docs/events.md.

Needs httpx, the extra `clusternode[http]`.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import trio

from clusternode.backends.base import BackendServices, Publication, wrong_uri
from clusternode.backends.options import Option, query_of, read_options
from clusternode.config.kinds import STRING, choice, integer, number
from clusternode.errors import PeerUnreachable

if TYPE_CHECKING:
    import httpx

BATCH = 64
OPTIONS = (
    Option(name="method", kind=choice("POST", "PUT"), default="POST", help="The HTTP method."),
    Option(
        name="timeout",
        kind=number(0.01, 60.0),
        default=5.0,
        help="Seconds for one request, from its begin to the last byte of the answer.",
    ),
    Option(
        name="concurrency",
        kind=integer(1, BATCH),
        default=1,
        help="Requests at a time; with more than one, events may come out of order.",
    ),
    Option(
        name="bearer",
        kind=STRING,
        default="",
        help="A token for `Authorization: Bearer …`.",
        is_secret=True,
    ),
    Option(
        name="ca",
        kind=STRING,
        default="",
        help="File of the certificates that are trusted; empty: those of the system.",
    ),
)
HEADERS = {"content-type": "application/json", "user-agent": "clusternode"}
ANSWER_SIZE_MAX = 64 * 1024
"""Nobody reads the answer; one that is longer costs its connection."""
CLIENT_ERRORS = range(400, 500)


class HttpBackend:
    """Sends each event in a request of its own; delivered when the answer is 2xx."""

    scheme: ClassVar[str] = "http"
    batch_max = BATCH

    def __init__(self, rest: str, services: BackendServices) -> None:
        del services
        scheme = self.scheme
        try:
            import httpx
        except ImportError:
            expected = f"{scheme}: with httpx installed: pip install 'clusternode[http]'"
            raise wrong_uri(f"{scheme}:", expected) from None
        body, values = read_options(scheme, rest, OPTIONS, separator="#")
        try:
            url = httpx.URL(f"{scheme}:{body}")
        except httpx.InvalidURL as error:
            raise wrong_uri(f"{scheme}:…", f"{scheme}://HOST[:PORT]/PATH ({error})") from None
        if not url.host or not body.startswith("//"):
            raise wrong_uri(f"{scheme}:…", f"{scheme}://HOST[:PORT]/PATH")
        self.identity = f"{url}{_options(values, None)}"
        masked = url.copy_with(userinfo=b"***") if url.userinfo else url
        self.shown = f"{masked}{_options(values, '***')}"
        timeout, concurrency = values["timeout"], values["concurrency"]
        assert isinstance(timeout, float)
        assert isinstance(concurrency, int)
        self._values = values
        self._timeout = timeout
        self.publish_timeout = timeout * BATCH + 1.0
        self._url = url
        self._limiter = trio.CapacityLimiter(concurrency)
        self._client: httpx.AsyncClient | None = None
        self._problem = ""  # why the batch that is being sent is given up

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        try:
            task_status.started()
            await trio.sleep_forever()
        finally:
            if self._client is not None:
                with trio.move_on_after(1.0, shield=True):
                    await self._client.aclose()

    async def publish(self, publications: Sequence[Publication]) -> None:
        """Send a batch, so many requests at a time as `concurrency` says.

        Raises:
            PeerUnreachable: The file of certificates cannot be used.
        """
        if self._client is None:
            self._client = await self._make_client()
        self._problem = ""
        async with trio.open_nursery() as nursery:
            for publication in publications:
                await self._limiter.acquire_on_behalf_of(publication)
                if self._problem:  # the rest of the batch would only wait as long, one by one
                    publication.fail(self._problem)
                    self._limiter.release_on_behalf_of(publication)
                else:
                    nursery.start_soon(self._send, self._client, publication)

    async def _make_client(self) -> httpx.AsyncClient:
        import httpx

        headers = dict(HEADERS)
        if self._values["bearer"]:
            headers["authorization"] = f"Bearer {self._values['bearer']}"
        verify = await trio.to_thread.run_sync(self._context)
        return httpx.AsyncClient(
            headers=headers,
            verify=verify,
            timeout=self._timeout,
            trust_env=False,
            follow_redirects=False,
        )

    def _context(self) -> ssl.SSLContext:
        try:
            return ssl.create_default_context(cafile=str(self._values["ca"]) or None)
        except (OSError, ssl.SSLError) as error:
            raise PeerUnreachable(f"{self._values['ca']}: {error}") from None

    async def _send(self, client: httpx.AsyncClient, publication: Publication) -> None:
        import httpx

        try:
            with trio.fail_after(self._timeout):
                answer = await self._post(client, publication.notification)
        except trio.TooSlowError:
            self._problem = f"no answer within {self._timeout:g} s"
            publication.fail(self._problem, definite=False)
        except httpx.ConnectError as error:
            self._problem = _reason(error)
            publication.fail(self._problem)
        except httpx.HTTPError as error:
            self._problem = _reason(error)
            publication.fail(self._problem, definite=False)
        else:
            if answer.is_success:
                publication.settle()
            else:
                detail = f"it answered {answer.status_code} {answer.reason_phrase}"
                publication.fail(detail, definite=answer.status_code in CLIENT_ERRORS)
        finally:
            self._limiter.release_on_behalf_of(publication)

    async def _post(self, client: httpx.AsyncClient, body: bytes) -> httpx.Response:
        """Send one request; read the answer, so that the connection can be used again."""
        method = str(self._values["method"])
        async with client.stream(method, self._url, content=body) as answer:
            size = 0
            async for data in answer.aiter_raw():
                size += len(data)
                if size > ANSWER_SIZE_MAX:
                    break
        return answer


class HttpsBackend(HttpBackend):
    """As `http:`, over TLS."""

    scheme: ClassVar[str] = "https"


def _reason(error: BaseException) -> str:
    """Return what went wrong: the text of the error, or of what caused it (TLS says it there)."""
    cause: BaseException | None = error
    while cause is not None:
        if str(cause):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    return type(error).__name__


def _options(values: dict[str, object], mask: str | None) -> str:
    return query_of(OPTIONS, values, mask).replace("?", "#", 1)
