"""The endpoints' /docs loads nothing from other servers, so it works in an air-gapped network."""

import asyncio
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import httpx
from fastapi import FastAPI

sys.path.insert(0, str(Path(__file__).parent))
import serving_kit as kit

BASE = "http://test/docs"


class Links(HTMLParser):
    """Collects the URLs in the tags of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.urls += [urljoin(BASE, value) for name, value in attrs if value and name in _URLS]


_URLS = ("src", "href")


def links(page: str) -> list[str]:
    """The scripts, styles and icons of a page, and its OpenAPI document."""
    parser = Links()
    parser.feed(page)
    return [*parser.urls, *(urljoin(BASE, url) for url in re.findall(r"url: '([^']+)'", page))]


def elsewhere(urls: list[str]) -> list[str]:
    """Those of another origin."""
    return [url for url in urls if urlsplit(url)[:2] != urlsplit(BASE)[:2]]


def get(client: httpx.AsyncClient, *urls: str) -> list[httpx.Response]:
    async def answers() -> list[httpx.Response]:
        async with client:
            return [await client.get(url) for url in urls]

    return asyncio.run(answers())


def test_everything_that_the_page_loads_is_same_origin_and_needs_no_token() -> None:
    (page,) = get(kit.client(kit.Local({})), BASE)
    assert page.status_code == 200
    urls = links(page.text)
    assert elsewhere(urls) == []
    assert '"validatorUrl": null' in page.text
    answers = get(kit.client(kit.Local({})), *urls)
    assert [answer.status_code for answer in answers] == [200] * 4
    kinds = [answer.headers["content-type"].partition(";")[0] for answer in answers]
    assert sorted(kinds) == ["application/json", "image/png", "text/css", "text/javascript"]
    assert min(len(answer.content) for answer in answers) > 1000


def test_scripts_of_another_server_are_found() -> None:
    """Negative control of the test above: what FastAPI does by itself."""
    app = FastAPI()
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")
    (page,) = get(client, BASE)
    assert len(elsewhere(links(page.text))) == 3


def test_other_paths_among_the_assets_need_the_token() -> None:
    paths = [f"http://test/docs/assets/{name}" for name in ("", "redoc.standalone.js", "../x", "x")]
    answers = get(kit.client(kit.Local({})), *paths)
    assert [answer.status_code for answer in answers] == [401] * 4
