"""One HTTP connection to the API: its errors are ours, and calls that may safely be repeated are. Errors: service/errors.py."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from pydantic import ValidationError

from service.errors import ApiProblem, ApiUnavailable, MillionwayError

T = TypeVar("T")

FIRST_DELAY_SECONDS = 0.25


class Connection:
    """Every call raises ApiUnavailable when there is no answer, ApiProblem when the answer is a refusal."""

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        timeout_seconds: float = 10.0,
        retries: int = 4,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """`key`: the API key, mw_... `retries`: further tries, with doubling delays, of calls that may safely be repeated.

        Raises MillionwayError for a wrong URL, or a key that no header can carry.
        """
        try:
            parts = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise MillionwayError(f"{url!r} is no URL of an API ({error}): give one such as http://127.0.0.1:8765") from None
        if parts.scheme not in ("http", "https") or not parts.host:
            raise MillionwayError(f"{url!r} is no URL of an API: give one such as http://127.0.0.1:8765")
        if key is not None and not (key.isascii() and key.isprintable() and key.strip()):
            raise MillionwayError("the API key holds characters that no key has: give the line that `millionway keys create` printed")
        self.url = url.rstrip("/")
        self._retries, self._timeout_seconds = retries, timeout_seconds
        self._http = httpx.Client(
            base_url=self.url,
            headers={} if key is None else {"Authorization": f"Bearer {key}"},
            timeout=httpx.Timeout(timeout_seconds, connect=min(timeout_seconds, 5.0)),
            transport=transport,
            verify=httpx.create_ssl_context(),  # SSL_CERT_FILE names a certificate authority of one's own
            trust_env=False,  # a proxy meant for the internet does not lead to the API
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._http.close()

    def _get(self, path: str, *, patience: httpx.Timeout | None = None, **params: Any) -> httpx.Response:
        return self._send("GET", path, params=_given(params), timeout=patience or self._http.timeout)

    def _send(self, method: str, path: str, *, retries: int | None = None, **request: Any) -> httpx.Response:
        """`retries=0` for what must not happen twice."""
        if "content" in request and "headers" not in request and method == "POST":
            request["headers"] = {"Content-Type": "application/json"}
        for delay in self._delays(retries):
            try:
                return _checked(self._http.request(method, path, **request))
            except httpx.TransportError as error:
                away = self._away(error)
            except ApiUnavailable as error:
                away = error
            if delay is not None:
                time.sleep(delay)
        raise away

    @contextmanager
    def _stream(self, path: str, *, read_seconds: float, headers: dict[str, str] | None = None, **params: Any) -> Iterator[httpx.Response]:
        """An answer whose body is read as it comes; no piece of it may take longer than `read_seconds`. Tried once."""
        timeout = httpx.Timeout(self._timeout_seconds, read=read_seconds)
        try:
            with self._http.stream("GET", path, params=_given(params), headers=headers, timeout=timeout) as answer:
                if not answer.is_success:
                    answer.read()
                yield _checked(answer)
        except httpx.TransportError as error:
            raise self._away(error) from None

    def _delays(self, retries: int | None = None) -> Iterator[float | None]:
        """How long to wait after each try that fails; None: give up."""
        yield from (FIRST_DELAY_SECONDS * 2**n for n in range(self._retries if retries is None else retries))
        yield None

    def _away(self, error: httpx.TransportError) -> ApiUnavailable:
        return ApiUnavailable(f"the API at {self.url} does not answer ({error or type(error).__name__})")


def read(parse: Callable[[bytes], T], answer: httpx.Response) -> T:
    """Raises ApiUnavailable where the answer is not one of our API."""
    try:
        return parse(answer.content)
    except ValidationError:
        url = answer.url.copy_with(path="/", query=None)
        raise ApiUnavailable(f"what answers at {url} is no millionway API of this version: {answer.text[:100]!r}") from None


def _given(params: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in params.items() if value is not None}


def _checked(answer: httpx.Response) -> httpx.Response:
    if answer.is_success:
        return answer
    try:
        document = answer.json()
    except ValueError:
        document = None
    if not isinstance(document, dict):
        document = {"title": answer.reason_phrase, "detail": answer.text[:500]}
    problem = ApiProblem(answer.status_code, document)
    if answer.status_code in (502, 503, 504):  # a proxy without an API behind it, or the API without its Redis
        raise ApiUnavailable(f"the API at {answer.url.copy_with(path='/')} cannot serve now ({problem})")
    raise problem
