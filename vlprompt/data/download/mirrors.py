"""Addresses that a file is offered at, and the answers that come from there."""

import html
import re
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlencode

import requests
import urllib3

from vlprompt.errors import UserError

TIMEOUT = (10, 60)  # seconds: to connect, between two packets
TRANSIENT = (408, 429, 500, 502, 503, 504)  # answers worth another try
LOST = (requests.RequestException, urllib3.exceptions.HTTPError)
DRIVE = "https://drive.usercontent.google.com/download"
PAGE = 1 << 14  # bytes of a web page that are read
HUB = re.compile(r"hf://(model|dataset)s/([\w.-]+/[\w.-]+)(?:@([^/]+))?/(.+)")


class Unavailable(Exception):
    """Why one mirror does not give the file."""


class Dropped(Unavailable):
    """The same, where another try may help."""


def resolve(url: str) -> str:
    """The address on the web. Raises: UserError for an unknown form."""
    if url.startswith("gdrive:"):
        return f"{DRIVE}?{urlencode({'id': url.removeprefix('gdrive:'), 'export': 'download', 'confirm': 't'})}"
    if match := HUB.fullmatch(url):
        from huggingface_hub import hf_hub_url  # heeds HF_ENDPOINT

        kind, repo, revision, name = match.groups()
        return hf_hub_url(repo, name, repo_type=kind, revision=revision)
    if url.startswith(("https://", "http://")):
        return url
    raise UserError(
        f"cannot fetch '{url}': allowed are https://..., http://..., gdrive:ID, hf://models/OWNER/REPO@REVISION/PATH "
        "and hf://datasets/OWNER/REPO@REVISION/PATH."
    )


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE is set, as huggingface_hub reads it."""
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def headers_for(url: str) -> dict[str, str]:
    """What every request says; the user's token for the hub alone."""
    headers = {"Accept-Encoding": "identity", "User-Agent": "vlprompt"}  # identity: ranges count the file's own bytes
    if url.startswith("hf://"):
        from huggingface_hub import constants, get_token

        token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
        headers |= {"Authorization": f"Bearer {token}"} if token else {}
    return headers


@contextmanager
def ask(url: str, address: str, headers: dict[str, str]) -> Iterator[requests.Response]:
    """An answer that is a file, or a part of one, to be read as it comes; `address` is where `url` is asked.

    Raises: Unavailable, also while it is read.
    """
    headers = {**headers_for(url), **headers}
    try:
        with _get(address, headers) as response:
            if address.startswith("https://") and not all(one.url.startswith("https://") for one in hops(response)):
                raise Unavailable("it leads to an address without encryption")
            status = response.status_code
            if status not in (200, 206, 416):
                gated = " (a gated or private repository needs HF_TOKEN)"
                hint = gated if url.startswith("hf://") and status in (401, 403) else ""
                raise (Dropped if status in TRANSIENT else Unavailable)(f"HTTP {status} {response.reason}{hint}")
            yield response
    except LOST as error:
        raise Dropped(reason(error)) from error


def _get(address: str, headers: dict[str, str]) -> requests.Response:
    try:
        return requests.get(address, headers=headers, stream=True, timeout=TIMEOUT)
    except (ValueError, requests.TooManyRedirects) as error:  # file://, ftp://, or none at all
        raise Unavailable("it leads to an address that cannot be fetched") from error


def hops(response: requests.Response) -> list[requests.Response]:
    """An answer and the redirects to it."""
    return [*response.history, response]


def reason(error: Exception) -> str:
    """In words: the libraries' own messages are long and nested."""
    if isinstance(error, requests.exceptions.SSLError):
        return "its certificate is not accepted"
    if isinstance(error, requests.exceptions.ProxyError):
        return "no connection to the proxy"
    if isinstance(error, (requests.exceptions.Timeout, urllib3.exceptions.TimeoutError)):
        return "no answer in time"
    return "no connection" if isinstance(error, requests.exceptions.ConnectionError) else "the connection was lost"


def is_page(response: requests.Response, first: bytes) -> bool:
    """Whether a web page came, which is what login portals and exhausted quotas answer with."""
    kind = response.headers.get("Content-Type", "").lower()
    return kind.startswith("text/html") or first.lstrip()[:14].lower().startswith((b"<!doctype html", b"<html"))


def title(page: bytes) -> str:
    """ " ('Its title')", or nothing."""
    match = re.search(r"<title[^>]*>([^<]*)</title>", _start_of(page), re.I)
    return f" ('{' '.join(html.unescape(match[1]).split())[:100]}')" if match else ""


def confirmation(page: bytes) -> str | None:
    """Where the form on Google Drive's page leads that asks whether to fetch a file too large to scan for viruses."""
    text = _start_of(page)
    action = re.search(r"<form[^>]*\baction=\"([^\"]+)\"", text)
    fields = re.findall(r"<input[^>]*\bname=\"([^\"]+)\"[^>]*\bvalue=\"([^\"]*)\"", text)
    if action is None or not fields:
        return None
    return f"{html.unescape(action[1])}?{urlencode({name: html.unescape(value) for name, value in fields})}"


def _start_of(page: bytes) -> str:
    """Enough of a page for what is looked for; a search through a long one that is made for that takes minutes."""
    return page[:PAGE].decode(errors="replace")
