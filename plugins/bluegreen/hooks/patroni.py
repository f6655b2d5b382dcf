"""Patroni's REST API.

Source: Patroni documentation, "Patroni REST API".
"""

from __future__ import annotations

import json
import logging
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, Self

import httpx
from airflow.sdk import BaseHook

from bluegreen.clusters import Cluster
from bluegreen.exceptions import FailedForNowError, RefusedError, UnreachableError
from bluegreen.topology import Topology, parse_topology

TIMEOUT_SECONDS = 4.0
ANSWER_SECONDS = 10.0
LOOK_SECONDS = 6.0
LEAST_SECONDS = 2.0
RESTART_SECONDS = 120.0
ANSWER_LIMIT_BYTES = 4 * 1024 * 1024


class PatroniHook(BaseHook):
    """The REST API of a cluster's members, with bounded time and memory for each answer.

    The optional ``http`` connection gives user and password, and in its extra ``verify`` (a CA file),
    ``cert`` and ``key`` (files of the client certificate).

    :param cluster: its registry entry.
    """

    def __init__(self, cluster: Cluster) -> None:
        super().__init__()
        self.cluster = cluster
        self._client: httpx.Client | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._client is not None:
            self._client.close()

    def get_conn(self) -> httpx.Client:
        """Return the HTTP client.

        :raises RefusedError: when the connection does not exist, or its certificates cannot be read.
        """
        if self._client is None:
            auth: httpx.BasicAuth | None = None
            context: ssl.SSLContext | bool = True
            conn_id = self.cluster.patroni_conn_id
            if conn_id:
                try:
                    connection = self.get_connection(conn_id)
                    extra = connection.extra_dejson
                    if connection.login:
                        auth = httpx.BasicAuth(connection.login, connection.password or "")
                    if extra.get("verify") or extra.get("cert"):
                        context = ssl.create_default_context(cafile=extra.get("verify") or None)
                        if extra.get("cert"):
                            context.load_cert_chain(extra["cert"], extra.get("key") or None)
                except Exception as error:
                    raise RefusedError(
                        f"the connection {conn_id!r} cannot be used ({type(error).__name__}: {str(error)[:200]}); "
                        "expected an http connection in Airflow for Patroni's REST API"
                    ) from None
            # httpx logs every request at INFO; the callers say what matters.
            logging.getLogger("httpx").setLevel(logging.WARNING)
            # Each request has a connection of its own: one that is cut off takes no other request with it.
            limits = httpx.Limits(max_keepalive_connections=0)
            self._client = httpx.Client(
                auth=auth,
                verify=context,
                timeout=TIMEOUT_SECONDS,
                trust_env=False,
                limits=limits,
                headers={"Accept-Encoding": "identity"},
            )
        return self._client

    def _connection_words(self) -> str:
        return f"the registry's patroni_conn_id ({self.cluster.patroni_conn_id or 'none is set'})"

    def request(
        self,
        method: str,
        url: str,
        body: Any = None,
        *,
        read_seconds: float = TIMEOUT_SECONDS,
        whole_seconds: float | None = None,
    ) -> tuple[int, str]:
        """Send one request and return status and text.

        :param read_seconds: how long the answer may take to begin.
        :param whole_seconds: for everything from the connection to the last byte; by default ANSWER_SECONDS.
        :raises UnreachableError: when no whole answer came in time.
        :raises FailedForNowError: when the answer is too large.
        :raises RefusedError: when one side does not accept the other's certificate.
        """
        if url.startswith("http://") and all(known.startswith("https://") for known in self.cluster.patroni):
            raise RefusedError(
                f"found {url[:80]!r} as a member's address, and the registry says https:// of every one; expected TLS "
                "there too, since user and password would be sent. Look at restapi: connect_address and certfile there"
            )
        client = self.get_conn()
        limit = whole_seconds or ANSWER_SECONDS + read_seconds - TIMEOUT_SECONDS
        timeout = httpx.Timeout(min(TIMEOUT_SECONDS, limit), read=min(read_seconds, limit))
        deadline = time.monotonic() + limit
        late = UnreachableError(f"{url} did not end its answer within {limit:.1f} s")
        try:
            with (
                _cut_off_after(limit) as trace,
                client.stream(method, url, json=body, timeout=timeout, extensions={"trace": trace}) as response,
            ):
                if response.headers.get("Content-Encoding", "identity") != "identity":
                    # A few bytes of it can be a whole memory full.
                    raise FailedForNowError(f"{url} answered compressed; expected an answer as it is")
                content = b""
                for part in response.iter_raw():
                    content += part
                    if len(content) > ANSWER_LIMIT_BYTES:
                        raise FailedForNowError(f"{url} answered more than {ANSWER_LIMIT_BYTES} bytes")
                    if time.monotonic() > deadline:
                        raise late
                return response.status_code, content.decode("utf-8", "replace")
        except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
            if time.monotonic() > deadline:
                raise late from None
            if _is_about_certificates(error):
                raise RefusedError(
                    f"{url}: TLS was refused ({str(error)[:200]}); expected CA and client certificate of "
                    f"{self._connection_words()} to fit (verify, cert and key in its extra)"
                ) from None
            raise UnreachableError(f"{url} does not answer ({str(error)[:160] or type(error).__name__})") from None

    def _change(
        self, method: str, url: str, body: Any = None, *, read_seconds: float = TIMEOUT_SECONDS
    ) -> tuple[int, str]:
        """Send a request that Patroni allows to some only.

        :raises RefusedError: when it does not allow it to this connection.
        """
        status, text = self.request(method, url, body, read_seconds=read_seconds)
        if status in (401, 403):
            raise RefusedError(
                f"{method} {url} answered {status} ({text[:60]!r}); expected user, password and client certificate of "
                f"{self._connection_words()} to be accepted"
            )
        return status, text

    def get_json(self, url: str, *, allow: tuple[int, ...] = (200,), whole_seconds: float | None = None) -> Any:
        """Return the JSON of a GET request.

        :raises FailedForNowError: for another status, or an answer that is no JSON.
        """
        status, text = self.request("GET", url, whole_seconds=whole_seconds)
        if status not in allow:
            raise FailedForNowError(f"GET {url} answered {status}; expected {allow[0]}")
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            raise FailedForNowError(f"GET {url} answered {text[:60]!r}; expected JSON") from None

    def topology(self) -> Topology:
        """Return the cluster as the first member that answers describes it.

        :raises UnreachableError: when none answers.
        :raises RefusedError: when none answers, and a certificate is why.
        """
        reasons: list[str] = []
        refused: RefusedError | None = None
        urls = self.cluster.patroni
        deadline = time.monotonic() + max(LOOK_SECONDS, len(urls) * LEAST_SECONDS)
        for number, url in enumerate(urls):
            # What one leaves of the time is the others': slow ones together take no longer than one.
            share = max((deadline - time.monotonic()) / (len(urls) - number), LEAST_SECONDS)
            try:
                answer = self.get_json(f"{url.rstrip('/')}/cluster", whole_seconds=share)
                return replace(parse_topology(answer), answered_by=url)
            except RefusedError as error:
                refused = refused or error
            except FailedForNowError as error:
                reasons.append(str(error) if url in str(error) else f"{url}: {error}")
        if refused is not None:
            raise RefusedError(f"no Patroni of cluster {self.cluster.name!r} can be asked: {refused}")
        raise UnreachableError(
            f"no Patroni of cluster {self.cluster.name!r} answers: {'; '.join(reasons)}. "
            "Check the registry's patroni: addresses, that Patroni runs, and that it reaches its DCS"
        )

    def member_status(self, api_url: str) -> dict[str, Any]:
        """Return a member's own ``GET /patroni``, whatever its role."""
        answer = self.get_json(f"{base_url(api_url)}/patroni", allow=(200, 503))
        if not isinstance(answer, dict):
            raise FailedForNowError(f"GET {base_url(api_url)}/patroni answered no mapping")
        return answer

    def dynamic_config(self, api_url: str) -> dict[str, Any]:
        """Return ``GET /config``."""
        answer = self.get_json(f"{base_url(api_url)}/config")
        if not isinstance(answer, dict):
            raise FailedForNowError(f"GET {base_url(api_url)}/config answered no mapping")
        return answer

    def replace_dynamic_config(self, api_url: str, config: dict[str, Any]) -> None:
        """Write ``PUT /config``.

        :raises RefusedError: when the REST API does not allow it.
        """
        status, text = self._change("PUT", f"{base_url(api_url)}/config", config)
        if status != 200:
            raise FailedForNowError(f"PUT {base_url(api_url)}/config answered {status}: {text[:120]!r}; expected 200")

    def reload(self, api_url: str) -> None:
        """Have a member read its configuration again.

        :raises RefusedError: when the REST API does not allow it.
        """
        status, text = self._change("POST", f"{base_url(api_url)}/reload")
        if status not in (200, 202):
            raise FailedForNowError(f"POST {base_url(api_url)}/reload answered {status}: {text[:120]!r}; expected 202")
        self.wake(api_url)

    def require_access(self, api_url: str) -> None:
        """Prove that a member allows changes to this connection, without making one.

        Patroni looks at user, password and client certificate first, and then answers an empty change with 400.
        Source: ``check_access`` and ``_read_json_content`` in ``patroni/api.py``.

        :raises RefusedError: when it does not.
        :raises UnreachableError: when it does not answer.
        """
        self._change("PATCH", f"{base_url(api_url)}/config", {})

    def wake(self, api_url: str) -> None:
        """Give a member its turn now; else it reads its configuration, or makes its replicas' slots, at the next
        one, up to ``loop_wait`` later.

        Taking a key out of the dynamic configuration that is not in it writes nothing, and ends the member's nap.
        Source: ``do_PATCH_config`` in ``patroni/api.py``.
        """
        try:
            self.request("PATCH", f"{base_url(api_url)}/config", {"bluegreen_wakes_this_member": None})
        except FailedForNowError as error:
            self.log.info("it will do its work at its next turn: %s", error)

    def restart(self, api_url: str) -> None:
        """Have Patroni restart a member's PostgreSQL, and wait until it has.

        :raises FailedForNowError: when it did not.
        :raises RefusedError: when the REST API does not allow it.
        """
        self._must_post(f"{base_url(api_url)}/restart", read_seconds=RESTART_SECONDS)

    def reinitialize(self, api_url: str) -> None:
        """Have Patroni empty a replica's data directory and clone it afresh; return when it has begun.

        Patroni itself refuses where the cluster has no leader, and on the leader (``Ha.reinitialize``).

        :raises FailedForNowError: when it did not begin.
        :raises RefusedError: when the REST API does not allow it.
        """
        self._must_post(f"{base_url(api_url)}/reinitialize")

    def _must_post(self, url: str, **options: Any) -> None:
        status, text = self._change("POST", url, {}, **options)
        if status != 200:
            raise FailedForNowError(f"POST {url} answered {status}: {text[:120]!r}; expected 200")

    def health(self, api_url: str, path: str) -> int:
        """Return the status of a health check such as ``/primary``; 0 when it does not answer."""
        try:
            return self.request("GET", f"{base_url(api_url)}/{path}")[0]
        except FailedForNowError:
            return 0


@contextmanager
def _cut_off_after(seconds: float) -> Iterator[Any]:
    """Give the trace of a request that ends its connection when the time is over, whatever it waits for.

    The client's own timeouts begin anew with each byte: a handshake, headers or a body that trickle in would never
    end. Source: HTTPX, "Request extensions", ``trace``.
    """
    connections: list[socket.socket] = []

    def trace(event: str, info: dict[str, Any]) -> None:
        if event == "connection.connect_tcp.complete":
            connections.append(info["return_value"].get_extra_info("socket").dup())

    def cut() -> None:
        for connection in connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield trace
    finally:
        timer.cancel()
        for connection in connections:
            connection.close()


def _is_about_certificates(error: Exception) -> bool:
    """Tell a certificate that one side does not accept from a connection that broke; alerts are named as in OpenSSL."""
    text = str(error)
    return "[SSL:" in text and any(word in text for word in ("CERTIFICATE", "UNKNOWN_CA", "HANDSHAKE_FAILURE"))


def base_url(api_url: str) -> str:
    """Return scheme, host and port of the address that ``GET /cluster`` gives (it ends in ``/patroni``).

    :raises FailedForNowError: when it is no address.
    """
    try:
        url = httpx.URL(api_url)
    except httpx.InvalidURL:
        raise FailedForNowError(f"found {api_url[:80]!r} as a member's api_url, expected a URL") from None
    return f"{url.scheme}://{url.netloc.decode()}"
