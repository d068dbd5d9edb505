"""The provider itself: its thread, its routes, and what it records."""

from __future__ import annotations

import asyncio
import functools
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any, Self
from urllib.parse import unquote

import orjson

from tokenrouter.standin import media
from tokenrouter.standin.account import StandInAccount
from tokenrouter.standin.answers import answer_completion, answer_embeddings, requested_failure
from tokenrouter.standin.connections import Connection
from tokenrouter.standin.faults import FAITHFUL, Faults, directives
from tokenrouter.standin.forms import read_form
from tokenrouter.standin.questions import read_chat, read_form_prompt, read_prompts, read_response
from tokenrouter.standin.responses import answer_response
from tokenrouter.standin.scripts import stage
from tokenrouter.standin.values import Answer, Call, Question, Refusal, Script, Served

DEFAULT_MODELS = ("GPT-5-nano", "GPT-5-mini", "Gemini-2.5-flash", "Gemini-2.5-pro")
BACKLOG = 4096  # benchmarks open a thousand connections in one moment


class StandInProvider:
    """Serve OpenAI's API on loopback from a thread of its own, recording what was asked and what was truly served.

    `calls` is filled as requests arrive, `finished` before an answer's last bytes leave; the counters of sockets and of
    aborted answers follow the client by a moment. After `stop()` it can start again on the same port.
    """

    def __init__(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        api_key: str | None = None,
        models: Sequence[str] = DEFAULT_MODELS,
        record_calls: bool = True,
    ) -> None:
        self.host, self.port, self.api_key, self.models = host, port, api_key, tuple(models)
        self.record_calls = record_calls  # a long benchmark need not keep every body
        self.defaults: dict[str, str] = {}
        self.account = StandInAccount()
        self.calls: list[Call] = []
        self.finished: list[Served] = []
        self.broken: list[Served] = []  # answers that were cut, or never sent; an account may charge them
        self.aborted = 0
        self.connections: set[Connection] = set()
        self._thread: threading.Thread | None = None

    @property
    def base_url(self) -> str:
        """Return the root to configure; its port is known after `start()`."""
        return f"http://{self.host}:{self.port}/v1"

    @property
    def open_connections(self) -> int:
        """Return how many sockets are open now."""
        return len(self.connections)

    @property
    def tokens_served(self) -> int:
        """Return the total tokens of all finished answers."""
        return sum(served.total_tokens for served in tuple(self.finished))

    def start(self) -> Self:
        """Listen and return; raises OSError if the port is taken."""
        listener = socket.create_server((self.host, self.port), backlog=BACKLOG)
        self.port = listener.getsockname()[1]
        self._loop, self._stopping = asyncio.new_event_loop(), asyncio.Event()
        self._thread = threading.Thread(target=self._run, args=(listener,), name="stand-in-provider", daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        """Close every socket at once and wait for the thread; does nothing if it is not running."""
        if self._thread is None:
            return
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()
        self._thread = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def close_idle(self) -> None:
        """Close the connections that wait for a request, and return when they are closed."""
        asyncio.run_coroutine_threadsafe(self._close_idle(), self._loop).result()

    async def _close_idle(self) -> None:
        idle = {each for each in self.connections if each.is_idle}
        for connection in idle:
            connection.transport.abort()
        while idle & self.connections:
            await asyncio.sleep(0)

    def _run(self, listener: socket.socket) -> None:
        with closing(self._loop):
            self._loop.run_until_complete(self._serve(listener))

    async def _serve(self, listener: socket.socket) -> None:
        server = await self._loop.create_server(lambda: Connection(self), sock=listener, backlog=BACKLOG)
        await self._stopping.wait()
        server.close()
        # A connection may just be in the hands of a task of the loop's own, which is waited for too.
        while self.connections or len(asyncio.all_tasks()) > 1:
            for connection in tuple(self.connections):
                connection.forget()
                connection.transport.abort()
            await asyncio.sleep(0)

    def respond(self, call: Call) -> Script:
        """Record a call and decide its answer."""
        if self.record_calls:
            self.calls.append(call)
        try:
            answer, faults = self._answer(call)
            script = stage(answer, faults)
            if answer.served is not None and script.served is None:
                self.broken.append(answer.served)
            return script
        except Refusal as refusal:
            return stage(Answer([refusal.body], status=refusal.status), FAITHFUL)
        except (AttributeError, IndexError, KeyError, TypeError) as error:  # a field of the wrong type, deep inside
            invalid = Refusal(400, f"Invalid request: {error!r}")
            return stage(Answer([invalid.body], status=400), FAITHFUL)

    def _answer(self, call: Call) -> tuple[Answer, Faults]:
        self._check_key(call.headers.get("authorization", ""))
        if call.method == "GET" and self.account.answers(call.path):
            faults = directives("", self.account.faults)
            records = tuple(self.finished), tuple(self.broken)
            return requested_failure(faults) or self.account.answer(call, *records), faults
        if call.method == "GET" and (call.path + "/").startswith("/v1/models/"):
            faults = directives("", self.defaults)
            return requested_failure(faults) or self._list_models(call.path[len("/v1/models/") :]), faults
        if call.method != "POST" or call.path not in ROUTES:
            raise Refusal(404, f"Unknown request URL: {call.method} {call.path}.", code="unknown_url")
        read, answer = ROUTES[call.path]
        question = read(fields_of(call))
        faults = directives(question.text, self.defaults)
        return requested_failure(faults) or answer(question, faults), faults

    def _check_key(self, authorization: str) -> None:
        bearer_token = authorization.removeprefix("Bearer ")
        if self.api_key is not None and bearer_token != self.api_key:
            # OpenAI shows as much of it, so what leaks a provider's answer leaks a part of the key.
            masked = f"{bearer_token[:4]}****{bearer_token[-4:]}" if len(bearer_token) > 12 else "****"
            raise Refusal(401, f"Incorrect API key provided: {masked}.", code="invalid_api_key")

    def _list_models(self, model_id: str) -> Answer:
        rows = [{"id": name, "object": "model", "created": 1754000000, "owned_by": "demo"} for name in self.models]
        if not model_id:
            return Answer([orjson.dumps({"object": "list", "data": rows})])
        for row in rows:
            if row["id"] == unquote(model_id):
                return Answer([orjson.dumps(row)])
        raise Refusal(404, f"The model '{unquote(model_id)}' does not exist.", code="model_not_found", param="model")


def fields_of(call: Call) -> dict[str, Any]:
    """Return the request's body; raises Refusal if it is not an object or a form with a model."""
    try:
        body = read_form(call) if "multipart" in call.headers.get("content-type", "").lower() else call.json
    except ValueError as error:
        raise Refusal(400, "We could not parse the body of your request.") from error
    if not isinstance(body, dict) or not isinstance(body.get("model"), str):
        raise Refusal(400, "you must provide a model parameter", param="model")
    return body


Reader = Callable[[dict[str, Any]], Question]
ROUTES: dict[str, tuple[Reader, Callable[[Question, Faults], Answer]]] = {
    "/v1/chat/completions": (read_chat, answer_completion),
    "/v1/completions": (functools.partial(read_prompts, "prompt"), answer_completion),
    "/v1/embeddings": (functools.partial(read_prompts, "input"), answer_embeddings),
    "/v1/responses": (read_response, answer_response),
    "/v1/moderations": (functools.partial(read_prompts, "input"), media.answer_moderation),
    "/v1/images/generations": (functools.partial(read_prompts, "prompt"), media.answer_generation),
    "/v1/images/edits": (read_form_prompt, media.answer_edit),
    "/v1/images/variations": (read_form_prompt, media.answer_variation),
    "/v1/audio/speech": (functools.partial(read_prompts, "input"), media.answer_speech),
    "/v1/audio/transcriptions": (read_form_prompt, media.answer_transcription),
    "/v1/audio/translations": (read_form_prompt, media.answer_translation),
}
