"""A report taken apart for tests, once all that must hold for every report holds."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser

from cxr_pipeline.about import NOTICE

VOID = {"meta", "img", "input", "br", "hr", "link"}


class Page(HTMLParser):
    """A page taken apart; raises where tags do not match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.data = [], [], [], {}
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        assert len(given) == len(attributes), f"an attribute twice in {tag}"
        self.tags.append((tag, given))
        if "id" in given:
            self.ids.append(given["id"])
        if tag not in VOID:
            self.open.append((tag, given.get("id")))

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open[-1][0] == tag, f"{tag} ends where {self.open[-1]} is open"
        self.open.pop()

    def handle_data(self, data):
        if self.open and self.open[-1][0] in ("script", "style"):
            self.data[self.open[-1]] = self.data.get(self.open[-1], "") + data

    def json(self, name):
        return json.loads(self.data["script", name])


def opened(path):
    """The page, once all that must hold for every report holds."""
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert len(page.ids) == len(set(page.ids)), "an id twice"
    labelled = {given.get("for") for tag, given in page.tags if tag == "label"}
    for tag, given in page.tags:
        assert not any(name.startswith("on") for name in given), f"a handler in {tag}"
        assert "style" not in given, "the policy forbids it"
        for name in ("src", "href"):
            assert given.get(name, "data:").startswith(("data:", "#")), given[name]
        if tag == "img":
            assert given["alt"] or given["id"] == "bare"
        if tag in ("input", "select"):
            assert given["id"] in labelled
        if tag in ("link", "iframe", "object", "embed", "base"):
            raise AssertionError(f"{tag} in the page")
    assert page.tags[0] == ("html", {"lang": "en"})
    assert NOTICE in text
    assert ("a", {"class": "skip", "href": "#main"}) in page.tags
    (policy,) = [g["content"] for _, g in page.tags if g.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; img-src data:")
    assert "unsafe" not in policy
    assert "http" not in policy
    for kind in ("script", "style"):
        code = page.data.get((kind, None))
        if code is not None:
            digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
            assert f"{kind}-src 'sha256-{digest}'" in policy
            assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|@import|url\(", code)
    return page


def films_in(page):
    return {name: page.json(name) for tag, name in page.data if tag == "script" and str(name).startswith("film-")}
