"""`metrics_listen`: what a real server tells Prometheus, and the pages that speak of it."""

import json
import re
import signal
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from openiodm.metrics import Metrics
from tests.support.process import Northbound, Server, free_port, fresh_database, gateway_token

DOCS = Path(__file__).parents[2] / "docs"


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (s.name, frozenset(s.labels.items())): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return name, frozenset(labels.items())


@pytest.mark.parametrize("engine", ["sqlite", "postgresql"])
async def test_prometheus_is_told_what_happened(engine: str, tmp_path: Path) -> None:
    port = free_port()
    async with fresh_database(engine, tmp_path) as url:
        server = Server(tmp_path, url, free_port(), metrics_listen=f"127.0.0.1:{port}")
        application = await server.cli("app", "create", "metrics", "--json")
        token = await gateway_token(server, application["appId"])
        await server.start()
        try:
            async with httpx.AsyncClient(base_url=server.url, timeout=30) as http:
                api = Northbound(http, application["appId"], application["secret"])
                poll = "/DEFAULT/controller/v1/dev"
                device = {"Authorization": f"GatewayToken {token}"}
                assert (await http.get(poll, headers=device)).status_code == 200
                await api.create_group("all", await api.device_ids(1))
                file_id = await api.upload("a.bin", b"x" * 10)
                targets = {"deviceGroups": ["all"], "deviceType": "sensor", "model": "m1", "manufacturerName": "acme"}
                await api.create_task(file_id, **targets)
                while "deploymentBase" not in (await http.get(poll, headers=device)).text:
                    pass
                base = (await http.get(poll, headers=device)).json()["_links"]["deploymentBase"]["href"]
                offer = (await http.get(base, headers=device)).json()["deployment"]["chunks"][0]["artifacts"][0]
                assert (await http.get(offer["_links"]["download-http"]["href"], headers=device)).content == b"x" * 10
                done = {"status": {"execution": "closed", "result": {"finished": "success"}}}
                told = await http.post(base.partition("?")[0] + "/feedback", headers=device, json=done)
                assert told.status_code == 200
                assert (await http.get("/DEFAULT/controller/v1/dev")).status_code == 401
                answer = await http.get(f"http://127.0.0.1:{port}/metrics")
                while "openiodm_list_index_tasks 1.0" not in answer.text:  # it reads the log twice a second
                    answer = await http.get(f"http://127.0.0.1:{port}/metrics")
                assert (await http.get(f"http://127.0.0.1:{port}/")).status_code == 404
                assert (await http.get("/metrics")).status_code == 404  # not where applications are
        finally:
            assert await server.end(signal.SIGTERM) == 0
    assert answer.headers["content-type"].startswith("text/plain")
    told = samples(answer.text)
    assert told[key("openiodm_requests_total", api="ddi", status="2xx")] >= 2
    assert told[key("openiodm_requests_total", api="ddi", status="4xx")] == 1
    assert told[key("openiodm_requests_total", api="native", status="2xx")] == 1
    assert told[key("openiodm_request_seconds_count", api="ddi")] >= 3
    assert told[key("openiodm_device_signals_total", what="contact")] >= 1
    assert told[key("openiodm_commit_items_sum")] >= 4
    assert told[key("openiodm_upgrades_unfinished")] == 0
    assert told[key("openiodm_device_requests_total", what="poll", status="2xx")] >= 2
    assert told[key("openiodm_device_requests_total", what="report", status="2xx")] == 1
    assert told[key("openiodm_device_request_seconds_count", what="report")] == 1
    assert told[key("openiodm_device_requests_total", what="download", status="2xx")] == 1
    assert told[key("openiodm_downloads_ended_total", how="whole")] == 1
    assert told[key("openiodm_download_bytes_total")] == 10
    assert told[key("openiodm_job_steps_total", kind="campaign.expand", end="done")] >= 1
    assert told[key("openiodm_job_step_seconds_count", kind="campaign.expand")] >= 1
    assert told[key("openiodm_notice_wait_seconds")] == 0
    assert told[key("openiodm_receivers_leased")] == 0
    assert told[key("openiodm_list_index_ready")] == 1
    assert told[key("openiodm_list_index_tasks")] == 1
    assert told[key("openiodm_list_index_bytes")] > 0
    assert told[key("openiodm_list_index_behind")] >= 0
    assert told[key("openiodm_writer_waiting", lane="report")] == 0
    assert told[key("openiodm_notices", state="pending")] == 0
    assert any(name == "process_resident_memory_bytes" for name, _ in told)


def names() -> set[str]:
    return {family.name for family in Metrics("0").registry.collect() if family.name.startswith("openiodm_")}


def test_the_page_names_every_metric() -> None:
    page = (DOCS / "operations.md").read_text("utf-8")
    for name in names():
        assert re.search(rf"`{name}(_total|_info)?`", page), name


def test_the_board_shows_every_metric_and_no_other() -> None:
    board = json.loads((DOCS / "grafana.json").read_text("utf-8"))
    asked = {
        name
        for panel in board["panels"]
        for target in panel["targets"]
        for name in re.findall(r"openiodm_\w+", target["expr"])
    }
    assert {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in asked} == names() - {"openiodm_build"}
