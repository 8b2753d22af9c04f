"""HTTP that does not give up: every request is within the budget, waits as long as it is told to, and is tried again.

What fails for a reason that may pass (429, 5xx, a connection that is refused, cut or silent) is tried again after a
growing pause for as long as now and then something gets through. What will not pass is an error for the user at once.

The token goes to the endpoint alone: httpx drops it where a redirect leads to another host. It, and the signatures in
the URLs of storage hosts, stay out of every message.
"""

import os
import random
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx2 as httpx

from toolkit.checkpoints.budget import Budget
from toolkit.failures import HubUnavailable

HUB = "https://huggingface.co"
PASSING = {408, 425, 429, 500, 502, 503, 504, 520, 522, 524}
ROUTE = re.compile(
    r"/(?:api/models/|api/(?P<api>dataset)s/|(?P<file>dataset)s/)?(?P<repo>[^/]+(?:/[^/]+)?)"
    r"/(?:refs|revision|tree|resolve)(?:[/?]|$)"
)
LONGEST_PAUSE = 60.0
MOST_TRIES = 40
UNREACHED = 45.0
LONGEST_TOLD = 900.0  # a Retry-After beyond this is a matter for the user


def endpoint() -> str:
    """The Hub, or the mirror that HF_ENDPOINT names."""
    return os.environ.get("HF_ENDPOINT", HUB).rstrip("/")


def token() -> str | None:
    """From the environment (HF_TOKEN) or the Hub's own store (`hf auth login`)."""
    from huggingface_hub import get_token

    return get_token()


@dataclass(kw_only=True)
class Patience:
    """Pauses between the tries at one thing; it ends `seconds` after the last progress."""

    seconds: float = 900.0
    first: float = 1.0
    _tries: int = field(default=0, init=False)
    _deadline: float = field(default=0.0, init=False)

    def progressed(self) -> None:
        """Something got through: start anew."""
        self._tries, self._deadline = 0, 0.0

    def pause(self, problem: str, told: float | None = None) -> None:
        """Sleep before the next try.

        Raises:
            HubUnavailable: it has lasted too long, or the server wants a pause that is too long.
        """
        now = time.monotonic()
        self._deadline = self._deadline or now + self.seconds
        if told is not None and told > LONGEST_TOLD:
            raise HubUnavailable(f"{problem}; it asks to wait {told:.0f} s: launch again then")
        if now > self._deadline or self._tries >= MOST_TRIES:
            raise HubUnavailable(
                f"{problem}, {self._tries + 1} times over: check the network; what nodes without one need,"
                " `tidemark prefetch STUDY` fetches on a machine that has it"
            )
        wait = min(self.first * 2**self._tries, LONGEST_PAUSE) * random.uniform(0.75, 1.25)  # not all at once again
        self._tries += 1
        if told is not None:
            self._deadline += told  # waiting as told is no failure
        time.sleep(wait if told is None else told + random.uniform(0, self.first))


class Refused(ValueError):
    """The server answered with `status`, and the answer will stay the same."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(kw_only=True)
class Web:
    """A client that threads may share. `hub`: where the token may go, and what the budget is for."""

    budget: Budget
    hub: str = field(default_factory=endpoint)
    token: str | None = field(default_factory=token, repr=False)
    patience: Patience = field(default_factory=Patience)
    timeout: float = 30.0  # seconds of silence after which a connection counts as cut
    _reached: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        limits = httpx.Limits(max_connections=None)
        self.client = httpx.Client(follow_redirects=True, timeout=self.timeout, limits=limits)

    def ask(self, method: str, url: str, headers: Mapping[str, str] | None = None) -> httpx.Response:
        """A response with its whole body, after as many tries as it takes.

        Raises:
            Refused: a 4xx status that will not pass.
            HubUnavailable: patience has ended.
        """
        patience = self.new_patience()
        while True:
            try:
                with self.stream(method, url, headers) as response:
                    response.read()
                    return response
            except Passing as error:
                patience.pause(str(error), error.told)

    def new_patience(self) -> Patience:
        """For one thing that is tried; little where no server was ever reached, as on a node without a network."""
        seconds = self.patience.seconds if self._reached else min(self.patience.seconds, UNREACHED)
        return Patience(seconds=seconds, first=self.patience.first)

    @contextmanager
    def stream(self, method: str, url: str, headers: Mapping[str, str] | None = None) -> Iterator[httpx.Response]:
        """One try at a response whose body the caller reads.

        Raises:
            Passing: what may be tried again, also while the body is read.
            Refused: what may not.
        """
        mine = url.startswith(self.hub + "/")
        sent = {"Accept-Encoding": "identity", "User-Agent": "tidemark", **(headers or {})}
        if mine:
            self.budget.take("api" if url.startswith(f"{self.hub}/api/") else "files")
            if self.token:
                sent["Authorization"] = f"Bearer {self.token}"
        try:
            with self.client.stream(method, url, headers=sent) as response:
                self._reached = True
                _check(response, url, self)
                yield response
        except httpx.TransportError as error:
            raise Passing(f"{shown(url)}: {type(error).__name__}") from error


def of_root(root: Path) -> Web:
    """A client within the budget of a root."""
    return Web(budget=Budget(folder=root / "index" / "requests"))


class Passing(Exception):
    """A failure that may pass; `told` are the seconds that the server asks to wait."""

    def __init__(self, message: str, told: float | None = None) -> None:
        super().__init__(message)
        self.told = told


def _check(response: httpx.Response, url: str, web: Web) -> None:
    status = response.status_code
    if status < 400:
        return
    elsewhere = response.url.host != httpx.URL(url).host or response.url.port != httpx.URL(url).port
    if status in PASSING or (status == 403 and elsewhere):  # the signature of a storage host's URL has run out
        raise Passing(f"{shown(url)} answers {status}", _told(response.headers))
    code = response.headers.get("X-Error-Code", "")
    told = f"{shown(url)} answers {status} {code}".rstrip()
    named = ROUTE.match(url.removeprefix(web.hub)) if url.startswith(web.hub + "/") else None
    raise Refused(_explained(told, status, code, named, web) if named else told, status)


def _explained(told: str, status: int, code: str, named: re.Match[str], web: Web) -> str:
    """The Hub's refusal as a sentence that says what to do."""
    repo, kind = named["repo"], "dataset" if named["api"] or named["file"] else "model"
    page = f"{shown(web.hub).rstrip('/')}/{'datasets/' if kind == 'dataset' else ''}{repo}"
    if web.token:
        log_in = "the token that is set (HF_TOKEN, or `hf auth login`) has no access to it"
    else:
        log_in = "log in with `hf auth login`, or set HF_TOKEN to a token of yours"
    if code == "GatedRepo":
        return f"{repo} is gated: open {page} and ask for access; {log_in}"
    if code == "RevisionNotFound":
        return f"{repo} has no such revision ({told}); `tidemark revisions {repo}` lists those that it has"
    if code == "EntryNotFound":
        return f"{repo} has no such file: {told}"
    return f"there is no {kind} {repo} at {page}, or it is private: {log_in}" if status in (401, 403, 404) else told


def _told(headers: Any) -> float | None:
    """Seconds of a Retry-After header, which holds seconds or a date."""
    said = headers.get("Retry-After")
    if said is None:
        return None
    if said.strip().isdigit():
        return float(said)
    try:
        return max(parsedate_to_datetime(said).timestamp() - time.time(), 0.0)
    except (TypeError, ValueError):  # neither: as if it had said nothing
        return None


def shown(url: str) -> str:
    """A URL as it may stand in a log: without user, password, and query, which may be a signature."""
    parts = httpx.URL(url)
    return str(parts.copy_with(username=None, password=None, query=None, fragment=None))
