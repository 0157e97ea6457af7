"""Feast's authentication, asked at most once in a while for each token, and away from the event loop.

Feast decides: its token parser says who the bearer of a token is, its permissions whether that user may read. Both
decisions are kept for a stated time, counted from when the token was looked at; so a revoked token, a role that was
taken away and permissions that were applied anew take effect within it. Only what Feast allows is answered here; who is
refused hears it from Feast's own application.
"""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import jwt
from feast.permissions.auth.auth_manager import AuthManager, get_auth_manager, set_auth_manager
from feast.permissions.auth.token_parser import TokenParser
from feast.permissions.security_manager import get_security_manager, is_auth_necessary
from starlette.authentication import AuthenticationError

from feast_quorin import feast_private
from feast_quorin.cache import BoundedCache

if TYPE_CHECKING:
    from feast.permissions.user import User

    from quorin.http import Headers

_MAX_TOKENS, _MAX_CHOICES = 4096, 256
_REFUSAL_SECONDS = 1.0
"""How long a refusal is kept at most: an authority that was away is asked again soon."""
_PATIENCE_SECONDS = 10.0
_THREADS = 8
_BEARER = b"bearer"

Choice = str | tuple[str, ...]
"""What permissions depend on of a request: the name of a service, or references to features."""


class Known:
    """What is known of a token until ``deadline`` (of the monotonic clock): its user, or the kind of error that refuses
    it, and for each choice of features whether the user may read it.
    """

    __slots__ = ("choices", "deadline", "refusal", "user")

    def __init__(self, user: User | None, refusal: str, deadline: float) -> None:
        self.user = user
        self.refusal = refusal
        self.deadline = deadline
        self.choices: BoundedCache[Choice, bool] = BoundedCache(_MAX_CHOICES)


class CachedTokens(TokenParser):
    """A token parser of Feast with a memory. It keeps hashes of tokens, never tokens. For one event loop."""

    def __init__(self, parser: Any, seconds: float) -> None:
        _limit_patience(parser)
        self._parser = parser
        self._seconds = seconds
        self._users: BoundedCache[bytes, Known] = BoundedCache(_MAX_TOKENS)
        self._refused: BoundedCache[bytes, Known] = BoundedCache(_MAX_TOKENS)  # Strangers must not push users out.
        self._asking: dict[bytes, asyncio.Task[Known]] = {}
        self._threads = ThreadPoolExecutor(_THREADS, "authentication")

    async def user_details_from_access_token(self, access_token: str) -> User:
        """The bearer of a token.

        :raises AuthenticationError: if Feast's parser refuses it, or cannot decide.
        """
        known = await self.look_up(access_token)
        if known.user is None:
            raise AuthenticationError(known.refusal)
        return known.user

    def cached(self, token: str) -> Known | None:
        """What is known of a token without asking anybody."""
        key = _key(token)
        known = self._users.get(key) or self._refused.get(key)
        return known if known is not None and time.monotonic() < known.deadline else None

    async def look_up(self, token: str) -> Known:
        """What is known of a token. However many ask at once, Feast's parser is asked once."""
        known, key = self.cached(token), _key(token)
        if known is not None:
            return known
        task = self._asking.get(key)
        if task is None:
            task = self._asking[key] = asyncio.create_task(self._ask(token, key))
            task.add_done_callback(lambda _: self._asking.pop(key))
        return await asyncio.shield(task)  # A caller that gives up waiting stops no other.

    async def _ask(self, token: str, key: bytes) -> Known:
        started = time.monotonic()
        self._users.pop(key, None)
        self._refused.pop(key, None)
        try:
            async with asyncio.timeout(_PATIENCE_SECONDS):
                # Feast's parser is a coroutine that blocks: a thread runs it, in an event loop of its own.
                loop, ask = asyncio.get_running_loop(), contextvars.copy_context().run
                user = await loop.run_in_executor(self._threads, lambda: ask(asyncio.run, _bearer(self._parser, token)))
            deadline = min(started + self._seconds, _expiry(token))
        except Exception as error:  # noqa: BLE001 - Feast makes any error of its parser a 401
            deadline = time.monotonic() + min(self._seconds, _REFUSAL_SECONDS)
            known = self._refused[key] = Known(None, type(error).__name__, deadline)
            return known
        known = self._users[key] = Known(user, "", deadline)
        return known


class Gate:
    """Who may read which features without Feast's application."""

    def __init__(self, store: Any, seconds: float) -> None:
        self._store = store
        manager = get_auth_manager()
        self._tokens = CachedTokens(manager.token_parser, seconds)
        set_auth_manager(AuthManager(token_extractor=manager.token_extractor, token_parser=self._tokens))

    def is_open(self, headers: Headers, choice: Choice) -> bool:
        """Whether it is known that the bearer of the token in the headers may read."""
        token = _token(headers)
        known = None if token is None else self._tokens.cached(token)
        return known is not None and known.choices.get(choice, False)

    async def bearer(self, headers: Headers) -> Known | None:
        """What is known of the token in the headers; None if it is refused, or for Feast to read."""
        token = _token(headers)
        known = None if token is None else await self._tokens.look_up(token)
        return None if known is None or known.user is None else known

    def may_read(self, known: Known, choice: Choice) -> bool:
        """Whether the bearer of a token may read; Feast is asked unless it is known. Not on the event loop."""
        allowed = known.choices.get(choice)
        if allowed is None:
            allowed = known.choices[choice] = self._is_allowed(known, choice)
        return allowed

    def _is_allowed(self, known: Known, choice: Choice) -> bool:
        try:
            asyncio.run(_check_reader(self._store, known.user, choice))
        except Exception:  # noqa: BLE001 - Feast's application raises it again, and says it in its own way
            return False
        return True


def gate(store: Any, seconds: float) -> Gate | None:
    """The gate of a store whose server authenticates; None if it does not. From then on Feast's own paths remember
    tokens too.
    """
    return Gate(store, seconds) if is_auth_necessary(get_security_manager()) else None


async def _bearer(parser: Any, token: str) -> User:
    """The user that Feast's parser finds.

    Its Kubernetes parser believes what a token says of itself even if the API server refuses the token, or cannot be
    reached; so the server is asked once more.

    :raises AuthenticationError: if the API server does not know the token.
    """
    user: User = await parser.user_details_from_access_token(token)
    reviews = getattr(parser, "auth_v1", None)
    if reviews is None or user.username == (os.getenv("INTRA_COMMUNICATION_BASE64") or None):
        return user
    from kubernetes.client import V1TokenReview, V1TokenReviewSpec

    status = reviews.create_token_review(V1TokenReview(spec=V1TokenReviewSpec(token=token))).status
    if not status.authenticated:
        raise AuthenticationError("The API server does not know the token.")
    return user


def _limit_patience(parser: Any) -> None:
    """Give up a connection of Feast's Kubernetes parser that is silent: its thread would wait for ever."""
    for name in ("v1", "rbac_v1", "auth_v1"):
        if (api := getattr(parser, name, None)) is not None:
            api.api_client.rest_client.pool_manager.connection_pool_kw["timeout"] = _PATIENCE_SECONDS


async def _check_reader(store: Any, user: User | None, choice: Choice) -> None:
    """Have Feast check the permissions of a user. :raises FeastPermissionError: if they do not suffice."""
    manager: Any = get_security_manager()
    manager.set_current_user(user)
    await feast_private.assert_readable(store, choice)


def _expiry(token: str) -> float:
    """When a token expires that its authority has accepted, by the monotonic clock."""
    try:
        expires = jwt.decode(token, options={"verify_signature": False}).get("exp")
    except jwt.InvalidTokenError:  # Other tokens do not say when they expire.
        return math.inf
    return math.inf if expires is None else time.monotonic() + float(expires) - time.time()


def _token(headers: Headers) -> str | None:
    """The token of the first ``Authorization``, which is Feast's choice, if every parser reads it alike."""
    authorization = next((value for name, value in headers if name == b"authorization"), b"")
    scheme, _, token = authorization.partition(b" ")
    if scheme.lower() != _BEARER or not token.isascii():
        return None
    text = token.decode("ascii")
    return text if text.split() == [text] else None


def _key(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
