"""`paddlelite report --watch`: the page and its news, for this machine alone."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_support import Page, write_run

from paddlelite_trainer.cli import main
from paddlelite_trainer.cli.report.everything import Collection
from paddlelite_trainer.cli.report.watch import server_for


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "runs" / "version_0", "step,loss\n1,2\n", status="running")


@pytest.fixture
def port(run: Path) -> Iterator[int]:
    server = server_for(Collection([str(run)]), port=0, seconds=0.001)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()
    thread.join(10)


def ask(port: int, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, dict(answer.headers), content


def test_the_page_may_ask_its_own_server_and_nobody_else(port: int) -> None:
    code, headers, content = ask(port, "/")
    page = Page(content)
    assert code == 200 and headers["Cache-Control"] == "no-store"
    assert "connect-src 'self'" in page.policy
    assert page.data["runs"][0]["curves"]["loss"]["x"] == [1]


def test_news_are_sent_where_there_are_some(port: int, run: Path) -> None:
    code, headers, content = ask(port, "/data")
    assert code == 200
    assert ask(port, "/data", If_None_Match=headers["ETag"])[0] == 304
    with (run / "metrics.csv").open("a") as file:
        file.write("2,1\n")
    deadline = time.monotonic() + 60
    code = 304
    while code == 304 and time.monotonic() < deadline:  # it looks again after ten times what a look takes
        code, _, content = ask(port, "/data", If_None_Match=headers["ETag"])
    assert code == 200 and json.loads(content)["runs"][0]["curves"]["loss"]["x"] == [1, 2]


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8765", "127.0.0.1.evil.example:1"])
def test_another_site_s_name_for_this_machine_is_refused(port: int, host: str) -> None:
    assert ask(port, "/data", Host=host)[0] == 403


def test_nothing_else_is_served(port: int) -> None:
    assert [ask(port, path)[0] for path in ("/../run.json", "/runs", "/data/x")] == [404, 404, 404]


def test_runs_that_are_gone_are_told_and_the_server_stays(port: int, run: Path) -> None:
    aside = run.rename(run.with_name("aside"))
    code, _, content = ask(port, "/data")
    assert code == 500 and content.decode() == f"no run at {run}"
    aside.rename(run)
    assert ask(port, "/data")[0] == 200


def test_a_port_that_is_taken_is_one_line(port: int, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in (port, 99999):
        assert main(["report", str(run), "--watch", "--port", str(wrong)]) == 2
        told: Any = capsys.readouterr().err
        assert told.startswith(f"paddlelite: cannot serve on port {wrong} (") and "choose another --port" in told
