"""The page for people: how it is served, and that its scripts ask for what the API has."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest

from api.app import create_app
from api.routes_page import FILES, FOLDER
from service.lifecycle import LIVE, TERMINAL, Event, Status, targets
from service.runs import WorkerState
from service.settings import Settings

SCRIPTS = {name: (FOLDER / name).read_text() for name in FILES.values() if name.endswith(".js")}
METHODS = {"get": "GET", "stream": "GET", "fetched": "GET", "post": "POST", "put": "PUT", "remove": "DELETE"}
CALL = re.compile(r"(\w+)\(path`([^`]*)`(?:, \{([^}]*)\})?")
SINKS = ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "DOMParser", "eval(", "new Function", "srcdoc", "setHTML")
"""What would make markup or code of a string."""
TEXT_COLOURS = ("text", "quiet", "link", "active", "waiting", "good", "bad")


@pytest.mark.parametrize("path", FILES)
def test_every_file_is_served_for_no_other_use_than_the_page(stranger: httpx.Client, path: str) -> None:
    """Without a key; under a policy that runs nothing but these files; never older than the API."""
    answer = stranger.get(path)
    assert answer.status_code == 200
    assert answer.content == (FOLDER / FILES[path]).read_bytes()
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'self';")
    assert "unsafe" not in policy
    assert "require-trusted-types-for 'script'" in policy
    assert "frame-ancestors 'none'" in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["referrer-policy"] == "no-referrer"
    media_type = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}[FILES[path].rpartition(".")[2]]
    assert answer.headers["content-type"].partition(";")[0] == media_type


def test_what_the_folder_holds_is_what_is_served(stranger: httpx.Client) -> None:
    """And no path below /page leads to anything else."""
    assert sorted(FILES.values()) == sorted(path.name for path in FOLDER.iterdir())
    for path in ("/page/", "/page/other.js", "/page/../app.py", "/page/%2e%2e/app.py", "/page/..%2fapp.py", "/app.js"):
        assert stranger.get(path).status_code == 401, path


def test_everything_that_the_page_loads_is_served_here() -> None:
    """It works without the internet, and below a proxy's path: every reference is relative, and a file that is served."""
    served = {path.lstrip("/") for path in FILES}
    found = _References()
    found.feed((FOLDER / "index.html").read_text())
    assert {"page/app.js", "page/style.css"} <= found.loaded <= served
    for name, script in SCRIPTS.items():
        imports = set(re.findall(r'from "([^"\n]*)";', script))
        assert {f"page/{path.removeprefix('./')}" for path in imports} <= served, name
    for name in FILES.values():
        addresses = re.findall(r"(?:https?:)?//[a-z][\w.]*\.\w+[^\s\"]*", (FOLDER / name).read_text())
        assert set(addresses) <= {"http://www.w3.org/2000/svg"}, name
    assert "url(" not in (FOLDER / "style.css").read_text()
    assert "@import" not in (FOLDER / "style.css").read_text()


def test_nothing_makes_markup_or_code_of_what_the_api_answers() -> None:
    """Names, labels, reasons and log lines are written by others."""
    assert [(name, sink) for name, script in SCRIPTS.items() for sink in SINKS if sink in script] == []
    found = _References()
    found.feed((FOLDER / "index.html").read_text())
    assert found.inline == []


def calls() -> list[tuple[str, str, list[str]]]:
    """Method, path with {} for each value, and the query's names or the body's, of every request of the scripts."""
    found = []
    for function, path, given in CALL.findall(SCRIPTS["calls.js"]):
        names = [re.split(r"[:\s]", part.strip())[0] for part in given.split(",") if part.strip()]
        found.append((METHODS[function], re.sub(r"\$\{\w+\}", "{}", path), names))
    return found


def test_every_request_of_the_page_is_one_of_the_documented_api() -> None:
    """Its method, its path, and the names in its query or body."""
    schema = create_app(Settings()).openapi()
    documented = {
        (method.upper(), re.sub(r"\{\w+\}", "{}", path)): operation
        for path, operations in schema["paths"].items()
        for method, operation in operations.items()
    }
    found = calls()
    assert len(found) == SCRIPTS["calls.js"].count("path`") > 20
    for method, path, names in found:
        operation = documented[method, path]
        known = {parameter["name"] for parameter in operation.get("parameters", [])}
        if "requestBody" in operation:
            reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
            known |= schema["components"]["schemas"][reference.rpartition("/")[2]]["properties"].keys()
        assert set(names) <= known, (method, path)


def test_the_key_goes_into_the_authorization_header_and_nowhere_else() -> None:
    """One module asks, and one place in it reads the key for a request; it is kept for the tab alone."""
    for name, script in SCRIPTS.items():
        assert ("fetch(" in script) == (name == "calls.js"), name
        assert "localStorage" not in script, name
        assert "document.cookie" not in script, name
        assert "EventSource(" not in script, name
        assert "XMLHttpRequest" not in script, name
    assert re.findall(r".*key\.get\(\).*", SCRIPTS["calls.js"]) == [
        "      headers: { Authorization: `Bearer ${key.get()}`, ...content, ...headers },"
    ]
    uses = [line for name in SCRIPTS if name != "calls.js" for line in SCRIPTS[name].splitlines() if "key.get()" in line]
    assert all(re.search(r"(!|\()key\.get\(\)( \?|;)", line) for line in uses), uses
    assert 'credentials: "omit"' in SCRIPTS["calls.js"]


def _constant(script: str, name: str) -> object:
    """A table of strings in a script, as JSON."""
    text = re.search(rf"export const {name} = ([\[{{].*?[\]}}]);", SCRIPTS[script], re.DOTALL)[1]
    quoted = re.sub(r"(\w+):", r'"\1":', text)
    return json.loads(re.sub(r",(\s*[\]}])", r"\1", quoted))


def test_the_page_knows_the_statuses_and_what_each_allows() -> None:
    """As service/lifecycle.py has them: a button that would be refused is not offered."""
    assert _constant("runs.js", "STATUSES") == list(Status)
    assert set(_constant("run.js", "TERMINAL")) == TERMINAL
    assert set(_constant("log.js", "HELD")) == LIVE
    possible = {name: set(statuses) for name, statuses in _constant("run.js", "POSSIBLE").items()}
    cancellable = targets(Event.CANCEL).keys()
    assert possible == {
        "pause": targets(Event.PAUSE).keys(),
        "resume": targets(Event.RESUME).keys(),
        "cancel": cancellable - {Status.CANCELLING},
        "kill": cancellable,
    }


def test_every_colour_of_a_state_is_one_that_exists() -> None:
    """The style names statuses and workers' states."""
    named = set(re.findall(r'data-status="(\w+)"', (FOLDER / "style.css").read_text()))
    assert named <= {*map(str, Status), *map(str, WorkerState)}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("ground", ["ground", "raised"])
def test_every_text_colour_can_be_read(scheme: str, ground: str) -> None:
    """WCAG 2.2, 1.4.3: 4.5 to 1 or more; 1.4.11: the edges of controls 3 to 1."""
    light, dark = re.findall(r":root \{(.*?)\}", (FOLDER / "style.css").read_text(), re.DOTALL)
    colours = dict(re.findall(r"--(\w+): #(\w{6});", light if scheme == "light" else dark))
    for name in (*TEXT_COLOURS, "edge"):
        assert _contrast(colours[name], colours[ground]) >= (3 if name == "edge" else 4.5), name


def _contrast(one: str, other: str) -> float:
    """WCAG's ratio of two colours, as six hexadecimal digits."""
    dark, light = sorted(map(_luminance, (one, other)))
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    channels = [part / 255 for part in bytes.fromhex(colour)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in channels]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node, which nothing else here does")
@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_can_be_parsed(name: str, tmp_path: Path) -> None:
    """As a module."""
    module = tmp_path / f"{name}.mjs"
    module.write_text(SCRIPTS[name])
    checked = subprocess.run(["node", "--check", module], capture_output=True, text=True, timeout=60, check=False)  # noqa: S607
    assert checked.returncode == 0, checked.stderr


class _References(HTMLParser):
    """What a page loads, and what in it the policy would not run."""

    def __init__(self) -> None:
        super().__init__()
        self.loaded, self.inline = set[str](), list[str]()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.inline += [name for name in given if name.startswith("on") or name == "style"]
        if tag == "style" or (tag == "script" and "src" not in given):
            self.inline.append(tag)
        if tag in ("script", "link", "img"):
            self.loaded.add(str(given.get("src") or given.get("href")))
