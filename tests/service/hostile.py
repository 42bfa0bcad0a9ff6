"""Hostile requests and what each is answered. `python -m tests.service.hostile` writes docs/hostile.md from them.

They come from alice, who has a key of the role user and one run, unless they say otherwise; another run is the administrator's.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from service.launch import free_port
from service.settings import Settings
from tests.conftest import ADMIN_KEY, NO_LIMIT, WORKER_KEY, bearer, emptied, new_key, running_api, running_redis, with_first_keys
from tests.service.hostile_cases import CASES, JSON, ROOT, Hostile, spec
from tests.service.reading import Reading

PAGE = Path(__file__).parents[2] / "docs" / "hostile.md"


class Ground:
    """An API that sees the workers' files, with images, a checkpoint, and links to elsewhere."""

    def __init__(self, http: httpx.Client, redis_url: str, directory: Path) -> None:
        self.directory, self.http = directory, http
        self.keys = {"alice": new_key(redis_url, "alice"), "admin": ADMIN_KEY, "worker": WORKER_KEY}
        self.ids = {"own": self._submit("alice")}
        reading = Reading(str(http.base_url), ADMIN_KEY, directory)
        with reading.client, reading.http:
            reading.take()
            run = reading.client.run(self.ids["own"])
            reading.report(run, reading.event("started", num_images=12, num_steps=50, start_step=0, world_size=2, device="cpu"))
            reading.report(run, reading.checkpointed(10))
        self.ids["foreign"] = self._submit("admin")
        checkpoint = directory / "runs" / run.id / "checkpoints" / "step-000000010"
        checkpoint.mkdir(parents=True)
        (checkpoint / "model.safetensors").write_bytes(b"12345")
        (checkpoint / "escape").symlink_to("/etc/hostname")

    def _submit(self, by: str) -> str:
        answer = self.http.post("/runs", content=self._written(spec()), headers={**JSON, **bearer(self.keys[by])})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def ask(self, case: Hostile) -> httpx.Response:
        if case.after is not None:
            self.ask(case.after)
        headers: dict[str, Any] = {} if case.by == "nobody" else bearer(self.keys[case.by])
        content = case.body
        if content is not None and not isinstance(content, bytes):
            content, headers = self._written(content), {**headers, **JSON}
        path = re.sub(r"\{(\w+)\}", lambda name: {**self.ids, "key": ADMIN_KEY}[name[1]], case.path)
        request = self.http.build_request(case.method, self.http.base_url, content=content, headers={**headers, **case.headers})
        request.url = request.url.copy_with(raw_path=path.encode())  # as it is, not made correct by the client
        return self.http.send(request)

    def _written(self, document: Any) -> bytes:
        return json.dumps(document).replace(ROOT, str(self.directory / "data")).encode()

    def shown(self, text: str) -> str:
        """With ROOT and names in the place of what differs each time."""
        text = text.replace(str(self.directory / "data"), ROOT)
        for name, run_id in self.ids.items():
            text = text.replace(run_id, name.upper())
        return text


@contextmanager
def ground(redis_url: str, directory: Path) -> Iterator[Ground]:
    images = directory / "data" / "images"
    images.mkdir(parents=True)
    for number in range(12):
        (images / f"{number}.png").touch()
    (directory / "data" / "escape").symlink_to("/etc")
    (directory / "data-private").mkdir()
    settings = Settings(
        redis_url=with_first_keys(emptied(redis_url)),
        state_dir=directory / "state",
        shared_files=True,
        runs_dir=directory / "runs",
        data_roots=(str(directory / "data"),),
        rate_limit=NO_LIMIT,
    )
    with running_api(settings) as url, httpx.Client(base_url=url, trust_env=False, timeout=30) as http:
        yield Ground(http, redis_url, directory)


HEAD = """\
# Hostile requests, and what each is answered

Written by `python -m tests.service.hostile`; a test sends each to a real API. They come from alice, who has a key of the role user and
whose run is OWN, unless they say otherwise; FOREIGN is the administrator's run. Data must lie below /data. Each refusal is a problem
document (RFC 9457).

| # | request | by | answer | what it says |
|---|---|---|---|---|
"""


def render(ground: Ground) -> str:
    lines = [HEAD]
    for number, case in enumerate(CASES, 1):
        answer = ground.ask(case)
        code = f" `{case.code}`" if case.code else ""
        detail = ground.shown(answer.json()["detail"]).replace("|", "\\|").replace("\n", "<br>") if case.code else ""
        detail = detail if len(detail) <= 200 else detail[:200] + "..."
        what = f"{case.title}: {case.method} {case.path[:60]}{'...' if len(case.path) > 60 else ''}".replace("|", "\\|")
        lines.append(f"| {number} | {what} | {case.by} | {answer.status_code}{code} | {detail} |\n")
    return "".join(lines)


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as directory,
        running_redis(Path(directory) / "redis", free_port()) as url,
        ground(f"{url}/0", Path(directory) / "ground") as found,
    ):
        PAGE.write_text(render(found))


if __name__ == "__main__":
    main()
