"""One server behind an engine: bounded in requests, time and bytes, asked again where that may help."""

import asyncio
import random
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from threading import Thread
from typing import Any, TypeVar

import httpx2
import openai

from loop.engines.answers import Failed
from loop.records import stable_hash

T = TypeVar("T")
LONGEST_WAIT = 60.0
"""Seconds between two tries at most, whatever the server asks for: a run must end."""
REASON = 300
"""Characters that are kept of what a server says is wrong."""
GROWTH = 64
"""Bytes of answer allowed for a byte of question: log-probabilities come for every token of the prompt."""


class Server:
    """Posts JSON to `base_url`, at most `concurrency` requests at a time, from an event loop of its own.

    So any thread may ask, one that runs an event loop too. `api_key` is in no error.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str,
        *,
        concurrency: int,
        timeout_s: float,
        retries: int,
        backoff_s: float,
        max_answer_bytes: int,
    ) -> None:
        self._key = api_key
        self._timeout_s = timeout_s
        self._retries = retries
        self._backoff_s = backoff_s
        self._slots = asyncio.Semaphore(concurrency)
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="alignloop-server", daemon=True)
        self._thread.start()
        self._client = openai.AsyncOpenAI(
            base_url=base_url,
            api_key=api_key,
            max_retries=0,
            timeout=timeout_s,
            # What is compressed may be a thousand times as long as what was counted.
            default_headers={"Accept-Encoding": "identity"},
            http_client=openai.DefaultAsyncHttpxClient(
                event_hooks={"response": [_bounding(max_answer_bytes)]},
                limits=httpx2.Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
            ),
        )

    def together(self, asks: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
        """What `asks` return, in their order. The first exception of one ends the others and is raised."""
        future = asyncio.run_coroutine_threadsafe(_all(asks), self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    async def ask(self, path: str, body: Mapping[str, Any], read: Callable[[str], T]) -> T:
        """What `read` makes of the answer; both may raise Failed, which is raised when no try is left.

        A request keeps its place among the `concurrency` while it waits: a busy server is asked less.
        """
        attempt = 0
        async with self._slots:
            while True:
                try:
                    return read(await self._post(path, body))
                except Failed as failed:
                    if not failed.again or attempt == self._retries:
                        tries = f"; asked {attempt + 1} times" if attempt else ""
                        raise Failed(self._line(failed.reason) + tries, status=failed.status) from None
                    await asyncio.sleep(self._pause(failed, attempt, body))
                attempt += 1

    def close(self) -> None:
        """Closes all connections and ends the thread; a second call does nothing."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._client.close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _post(self, path: str, body: Mapping[str, Any]) -> str:
        try:
            async with asyncio.timeout(self._timeout_s):  # the client's own starts anew with every byte
                return await self._client.post(path, cast_to=str, body=body)
        except openai.APIStatusError as error:
            raise self._refusal(error) from None
        except (TimeoutError, openai.APITimeoutError):
            raise Failed(f"no answer within {self._timeout_s:g} s") from None
        except openai.OpenAIError as error:
            cause = error.__cause__ or error
            raise Failed(f"no connection ({type(cause).__name__}: {cause})") from None

    def _refusal(self, error: openai.APIStatusError) -> Failed:
        body: Any = error.body
        said = body.get("message") if isinstance(body, dict) else None
        status = error.status_code
        return Failed(
            f"HTTP {status}: {said or error.response.text or error.response.reason_phrase}",
            again=status == 429 or status >= 500,
            status=status,
            wait=_retry_after(error.response.headers.get("Retry-After", "")),
        )

    def _line(self, text: str) -> str:
        """One line of at most REASON characters, without the key: some servers repeat it."""
        return " ".join(text.replace(self._key, "***").split())[:REASON]

    def _pause(self, failed: Failed, attempt: int, body: Mapping[str, Any]) -> float:
        """Seconds until the next try: doubling, spread so that those that failed together come apart."""
        spread = random.Random(stable_hash(body, attempt)).uniform(0.5, 1.5)
        return min(LONGEST_WAIT, max(failed.wait, self._backoff_s * 2 ** min(attempt, 16) * spread))


async def _all(asks: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(ask) for ask in asks]
    except BaseExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]


def _retry_after(header: str) -> float:
    """Seconds that a Retry-After header asks for, in either of its forms; 0 without a readable one."""
    if re.fullmatch(r"\d{1,9}(\.\d+)?", header.strip()):
        return float(header)
    try:
        date = parsedate_to_datetime(header)
    except ValueError:
        return 0.0
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def _bounding(limit: int) -> Callable[[httpx2.Response], Awaitable[None]]:
    """A hook that ends the reading of an answer that is too long, or compressed, with Failed."""

    async def bound(response: httpx2.Response) -> None:
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise Failed("the answer is compressed, which was not asked for")
        allowed = max(limit, GROWTH * len(response.request.content))
        if isinstance(response.stream, httpx2.AsyncByteStream):
            response.stream = _Bounded(response.stream, allowed)

    return bound


class _Bounded(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream, limit: int) -> None:
        self._stream, self._limit = stream, limit

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in self._stream:
            size += len(chunk)
            if size > self._limit:
                raise Failed(f"the answer is longer than {self._limit} bytes (max_answer_bytes)")
            yield chunk

    async def aclose(self) -> None:
        await self._stream.aclose()
