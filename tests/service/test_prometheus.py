"""What Prometheus reads."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from api.metrics import FRESH_SECONDS
from service.launch import free_port
from service.lifecycle import Status
from service.settings import Settings
from tests.conftest import running_api
from tests.service.reading import Reading

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scrape(url: str) -> Samples:
    """Without a key, by the library's own parser: samples by name and labels."""
    answer = httpx.get(f"{url}/metrics", trust_env=False)
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    families = text_string_to_metric_families(answer.text)
    return {(sample.name, tuple(sorted(sample.labels.items()))): sample.value for family in families for sample in family.samples}


def of(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((f"millionway_{name}", tuple(sorted(labels.items()))))


def test_runs_workers_slots_and_throughput_are_counted(api: Reading) -> None:
    """As the routes show them; a status without runs is 0, not absent."""
    run = api.started()
    api.report(run, api.progress(10, images_per_second=1234.5))
    api.submit()
    time.sleep(FRESH_SECONDS)
    samples = scrape(api.url)
    counts = {status: of(samples, "runs", status=status) for status in Status}
    assert counts == {status: float(status in ("running", "queued")) for status in Status}
    assert (of(samples, "workers", state="ready"), of(samples, "workers", state="silent")) == (1, 0)
    assert [of(samples, "slots", state=state) for state in ("used", "free", "away")] == [2, 0, 0]
    assert (of(samples, "images_per_second"), of(samples, "store_up")) == (1234.5, 1)
    waited = of(samples, "queue_oldest_seconds")
    assert waited is not None
    assert FRESH_SECONDS < waited < 30
    assert of(samples, "scheduler_pass_seconds") is not None
    assert samples["process_resident_memory_bytes", ()] > 1e6

    api.end(run, "crashed", "an error")
    time.sleep(FRESH_SECONDS)
    assert of(scrape(api.url), "attempts_total", outcome="crashed") == 1


def test_requests_are_counted_and_timed_by_their_route(api: Reading) -> None:
    """By the template, with method and status, also those that are refused."""
    run = api.submit()
    for _ in range(3):
        api.client.run(run.id)
    api.http.get("/runs/nothing")
    httpx.get(f"{api.url}/runs/{run.id}", trust_env=False)
    samples = scrape(api.url)
    about = {"route": "/runs/{run_id}", "method": "GET"}
    assert (of(samples, "http_requests_total", **about, code="200"), of(samples, "http_requests_total", **about, code="404")) == (3, 1)
    assert of(samples, "http_requests_total", route="other", method="GET", code="401") == 1
    assert of(samples, "http_request_seconds_count", **about) == 4
    assert of(samples, "http_request_seconds_bucket", **about, le="+Inf") == 4


def test_a_stream_is_timed_to_its_beginning(api: Reading) -> None:
    """How long it is followed says nothing of how fast the API is."""
    run = api.started()
    with api.http.stream("GET", f"/runs/{run.id}/events", headers={"Accept": "text/event-stream"}) as answer:
        next(answer.iter_raw())
        time.sleep(0.3)
        samples = scrape(api.url)
    about = {"route": "/runs/{run_id}/events", "method": "GET"}
    assert of(samples, "http_request_seconds_count", **about) == 1
    seconds = of(samples, "http_request_seconds_sum", **about)
    assert seconds is not None
    assert seconds < 0.3


def test_no_request_makes_a_label_of_its_own(api: Reading) -> None:
    """Random paths, ids, methods and names add nothing after the first of their kind: a scanner does not fill Prometheus."""

    def ask(number: int) -> None:
        for path in (
            f"/{number}",
            f"/runs/{number}",
            f"/runs/{number}/logs?name=rank-{number}.log",
            f"/a/b/{number}?x={number}",
            f"//{number}/..",
        ):
            api.http.get(path)
        api.http.post(f"/workers/w{number}/poll", content=b"{}")
        api.http.request("PROPFIND", f"/runs/{number}")
        api.http.put(f"/runs/{number}")
        httpx.get(f"{api.url}/runs/{number}", trust_env=False)

    ask(0)
    scrape(api.url)
    before = scrape(api.url).keys()
    for number in range(1, 20):
        ask(number)
    after = scrape(api.url)
    assert after.keys() == before
    assert {dict(labels).get("route") for _, labels in after} <= {
        None, "other", "/", "/metrics", "/runs/{run_id}", "/runs/{run_id}/logs", "/workers/{worker}/poll",
    }  # fmt: skip
    assert {dict(labels).get("method") for _, labels in after} <= {None, "GET", "POST", "PUT", "other"}


def test_an_absent_store_is_a_figure_and_no_error(tmp_path: Path) -> None:
    """What this process knows is still told: that is when it is looked at."""
    with running_api(Settings(redis_url=f"redis://127.0.0.1:{free_port()}/0", state_dir=tmp_path)) as url:
        scrape(url)
        samples = scrape(url)
    assert of(samples, "store_up") == 0
    assert of(samples, "http_requests_total", route="/metrics", method="GET", code="200") == 1
