"""`paddlelite report`: one page of what runs hold, in which nothing of a run is code, and nothing is silently wrong."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_support import ROOT, damage, save
from report_support import Page, write_journal, write_run

from paddlelite_trainer.cli import main, report
from paddlelite_trainer.cli.report.everything import Collection

HOSTILE = '</script><script>alert(1)</script><img src=x onerror=alert(2)> & "q" \u2028'


def read(*paths: Path) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = Collection([str(path) for path in paths]).read()["runs"]
    json.dumps(runs, default=str)
    return runs


@pytest.fixture
def made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Make a report of these paths: (exit code, page or None, stderr)."""

    def made(*arguments: Any) -> tuple[int, Page | None, str]:
        output = tmp_path / "out" / "report.html"
        output.parent.mkdir(exist_ok=True)
        code = main(["report", *map(str, arguments), "-o", str(output)])
        told = capsys.readouterr()
        assert "Traceback" not in told.err
        return code, Page(output.read_bytes()) if output.exists() else None, told.out + told.err

    return made


# -- the page --------------------------------------------------------------------------------------------------------
def test_nothing_of_a_run_is_markup_or_code_in_the_page(tmp_path: Path, made: Any) -> None:
    run = write_run(tmp_path / "runs" / HOSTILE.replace("/", ""), status="failed", reason=HOSTILE, command=HOSTILE)
    (run / "metrics.csv").write_text('step,"' + HOSTILE.replace('"', '""').replace("\u2028", "") + '"\n1,2\n2,3\n')
    write_journal(run, (0, "began", 0, 0, {"hyper_parameters": {HOSTILE: HOSTILE}, "trainer": {"x": [HOSTILE]}}))
    (run / "train.log").write_text(f"WARNING: {HOSTILE}\n")
    plain = write_run(tmp_path / "plain" / "version_0", "step,loss\n1,2\n")
    code, page, _ = made(run)
    _, other, _ = made(plain)
    assert code == 0
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in other.elements]
    assert page.data["runs"][0]["settings"][f"hyper_parameters.{HOSTILE}"] == HOSTILE
    assert page.data["runs"][0]["log"]["warnings"] == [[HOSTILE.split("\u2028")[0].strip(), 1]]


def test_the_page_runs_its_own_scripts_alone_and_loads_nothing(tmp_path: Path, made: Any) -> None:
    write_run(tmp_path / "runs" / "version_0", "step,loss\n1,2\n")
    _, page, _ = made(tmp_path / "runs")
    assert "default-src 'none'" in page.policy and "connect-src 'none'" in page.policy
    scripts = [attributes for tag, attributes in page.elements if tag == "script"]
    nonces = {attributes["nonce"] for attributes in scripts if "nonce" in attributes}
    assert len(nonces) == 1 and f"script-src 'nonce-{nonces.pop()}'" in page.policy
    assert [attributes.get("type") for attributes in scripts] == ["application/json", None, None]
    for _, attributes in page.elements:
        assert "src" not in attributes and not str(attributes.get("href", "data:")).startswith(("http", "//"))
        assert not [name for name in attributes if name.startswith("on")]


def test_the_script_knows_every_part_of_the_page() -> None:
    folder = ROOT / "paddlelite_trainer" / "cli" / "report"
    named = {identifier for _, identifier in _ids((folder / "page.html").read_text())}
    import re

    used = set(re.findall(r'\$\("([\w-]+)"\)', (folder / "page.js").read_text()))
    assert used <= named


def _ids(text: str) -> list[tuple[str, str]]:
    return [(tag, str(attributes["id"])) for tag, attributes in Page(text.encode()).elements if "id" in attributes]


def test_it_needs_no_paddle(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "version_0", "step,loss\n1,2\n")
    code = "import sys; sys.modules['paddle'] = None; from paddlelite_trainer.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "report", str(tmp_path / "runs"), "-o", str(tmp_path / "report.html")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{tmp_path / 'report.html'}  1 run, ")


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium, to see what a browser makes of the page")
def test_a_browser_draws_it_and_runs_nothing_of_a_run(tmp_path: Path, made: Any) -> None:
    bad = "<img src=x onerror=\"document.title='taken'\">"
    for number in range(2):
        run = write_run(
            tmp_path / "runs" / f"{bad.replace('/', '')}{number}",
            f'step,"{bad.replace(chr(34), chr(34) * 2)}",lr\n1,2,1\n2,nan,1\n3,1,1\n',
        )
        write_journal(
            run, (0, "began", 0, 0, {"hyper_parameters": {bad: number}}), (9, "ended", 3, 1, {"outcome": bad})
        )
    made(tmp_path / "runs")
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += [
        "--enable-logging=stderr",
        "--virtual-time-budget=8000",
        "--dump-dom",
        f"file://{tmp_path}/out/report.html",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr, done.stderr
    shown = Page(done.stdout.encode())
    assert not [tag for tag, _ in shown.elements if tag == "img"]
    assert "2 runs · paddlelite report" in shown.text and "taken" not in shown.text.replace("'taken'", "")
    assert bad in shown.text and "2 of 2 shown" in shown.text
    assert [attributes for tag, attributes in shown.elements if "scatterlayer" in str(attributes.get("class"))]


# -- curves ----------------------------------------------------------------------------------------------------------
def test_values_that_are_not_finite_are_marked_and_part_the_line(tmp_path: Path) -> None:
    write_run(tmp_path / "run", "step,loss,acc\n1,0.5,1\n2,nan\n3,inf\n4,0.25,0\n4,,0.5\n")
    (run,) = read(tmp_path / "run")
    loss = run["curves"]["loss"]
    assert (loss["x"], loss["y"]) == ([1, 2, 3, 4], [0.5, None, None, 0.25])
    assert (loss["bad"], loss["bad_count"]) == ([[2, "nan"], [3, "inf"]], 2)
    assert run["curves"]["acc"]["y"] == [1, 0, 0.5]
    assert run["problems"] == []


def test_a_long_curve_is_means_between_the_smallest_and_the_largest(tmp_path: Path) -> None:
    values = [math.sin(step / 16_000) for step in range(100_000)]
    values[77_777], values[5], values[99_990] = 9.0, math.nan, math.nan
    rows = "".join(f"{step},{value!r}\n" for step, value in enumerate(values))
    write_run(tmp_path / "run", f"step,loss\n{rows}")
    (run,) = read(tmp_path / "run")
    curve = run["curves"]["loss"]
    assert (curve["count"], curve["per"], len(curve["x"]), curve["bad"]) == (
        100_000,
        50,
        2000,
        [[5, "nan"], [99990, "nan"]],
    )
    assert curve["y"][0] == pytest.approx(sum(values[step] for step in range(50) if step != 5) / 49, rel=1e-5)
    assert curve["x"][:2] == [24.5, 74.5]
    at = 77_777 // 50
    assert curve["hi"][at] == 9.0 and curve["lo"][at] < curve["y"][at] < 9.0
    last = [value for value in values[-50:] if math.isfinite(value)]
    assert (curve["lo"][-1], curve["hi"][-1]) == (
        pytest.approx(min(last), rel=1e-5),
        pytest.approx(max(last), rel=1e-5),
    )
    assert max(last) < 0
    assert run["last"]["loss"] == pytest.approx(values[-1], rel=1e-5)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("step,loss\n1,2\n3,0.", "metrics.csv: the last line has no end and is left out"),
        ("step,loss\n1,2\nx,3\n", "metrics.csv: 1 rows without a step, left out"),
        ("step,loss\n1,2\n2,soon\n", "metrics.csv: 1 cells that are no number, left out"),
        ("step,loss\n1,2\n2,3,4\n", "metrics.csv: 1 rows with more cells than columns, left out"),
        ("mine,loss\n1,2\n", "metrics.csv has no column step, and no curves are drawn: mine, loss"),
        ("step,loss,loss\n1,2,\n", "metrics.csv has columns of one name, which are one curve: loss"),
    ],
)
def test_what_is_wrong_in_the_metrics_is_told(tmp_path: Path, content: str, problem: str, made: Any) -> None:
    write_run(tmp_path / "run", content)
    code, page, told = made(tmp_path / "run")
    assert code == 0
    assert page.data["runs"][0]["problems"] == [problem] and problem in told
    assert page.data["runs"][0]["curves"].get("loss", {"x": [1]})["x"][0] == 1


def test_a_file_that_cannot_be_read_is_told_and_the_rest_is_shown(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    for name in ("metrics.csv", "journal.jsonl", "train.log", "profile.txt", "hparams.json"):
        (run / name).mkdir()
    (run / "run.json").write_text('{"status": ')
    problems = " ".join(read(run)[0]["problems"])
    for name in ("metrics.csv", "journal.jsonl", "train.log", "profile.txt", "run.json"):
        assert name in problems, name


# -- kills and resumes -----------------------------------------------------------------------------------------------
KILLED = (
    (0, "began", 0, 0, {"trainer": {"callbacks": ["A", "B"]}, "hyper_parameters": {"lr": 0.1}}),
    (10, "at", 100, 1),
    (20, "at", 180, 1),
    (
        1000,
        "began",
        100,
        1,
        {"trainer": {"callbacks": ["A", "C"]}, "hyper_parameters": {"lr": 0.1}, "went_on_from": "s"},
    ),
    (1010, "at", 200, 2),
    (1020, "ended", 300, 3, {"outcome": "finished"}),
)


def test_a_kill_and_a_resume_are_told_with_what_was_lost(tmp_path: Path) -> None:
    write_journal(write_run(tmp_path / "run", "step,loss\n1,2\n"), *KILLED)
    first, second = read(tmp_path / "run")[0]["sessions"]
    assert (first["ended"], first["killed"], first["to"], second["lost"]) == (
        "killed: no end was written",
        True,
        180,
        0,
    )
    assert (first["lost"], second["from"], second["went_on_from"], second["ended"]) == (80, 100, "s", "finished")
    assert second["changed"] == ["trainer.callbacks: without B, with C"]


def test_the_time_of_a_step_is_that_of_the_work_that_counts(tmp_path: Path) -> None:
    write_journal(write_run(tmp_path / "run", "step,loss\n1,2\n"), *KILLED)
    (run,) = read(tmp_path / "run")
    assert [point[:2] for point in run["clock"]] == [[0, 0], [100, 10], [100, 20], [200, 30], [300, 40]]
    assert run["worked"] == 40 and run["epochs"] == [[0, 0], [100, 1], [200, 2], [300, 3]]


def test_where_no_moment_of_the_step_is_known_that_was_gone_on_from_its_neighbours_tell(tmp_path: Path) -> None:
    events = [KILLED[0], (20, "at", 200, 1), *KILLED[3:]]
    write_journal(write_run(tmp_path / "run", "step,loss\n1,2\n"), *events)
    assert [point[:2] for point in read(tmp_path / "run")[0]["clock"]][:3] == [[0, 0], [100, 10], [100, 20]]


def test_the_last_process_is_running_or_killed_as_run_json_tells(tmp_path: Path) -> None:
    for status, ended in (("running", "running"), ("failed", "killed: no end was written")):
        write_journal(write_run(tmp_path / status, "step,loss\n1,2\n", status=status), KILLED[0], KILLED[1])
        assert read(tmp_path / status)[0]["sessions"][0]["ended"] == ended


def test_a_torn_line_of_the_journal_is_told(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "step,loss\n1,2\n")
    write_journal(run, *KILLED)
    with (run / "journal.jsonl").open("a") as file:
        file.write('{"time": "2026-\n{"time": 3, "event": "at", "step": 1, "epoch": 0}\n[1]\n')
    (told,) = read(run)
    assert told["problems"] == ["journal.jsonl: 3 torn lines, left out"] and len(told["sessions"]) == 2


# -- checkpoints and settings ----------------------------------------------------------------------------------------
def test_checkpoints_are_listed_and_the_best_is_the_run_s_own(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "step,val/acc\n10,0.1\n20,0.9\n30,0.3\n")
    for step, score in ((10, 0.1), (20, 0.9), (30, 0.3)):
        save(run, step, pins=["best", "best_val_acc"] if step == 20 else [], **{"val/acc": score})
    (told,) = read(run)
    assert [(one["step"], one["metrics"]) for one in told["checkpoints"]][1] == (20, {"val/acc": 0.9})
    assert "best_val_acc" in told["checkpoints"][1]["pins"]
    assert (told["monitor"], told["best"]) == ("val/acc", {"value": 0.9, "step": 20, "checkpoint": "step-000000020"})


def test_a_damaged_manifest_is_told_and_the_others_are_listed(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "step,loss\n1,2\n")
    save(run, 10)
    damage(save(run, 20), "manifest.json")
    (told,) = read(run)
    assert [one["state"] for one in told["checkpoints"]] == ["unknown", "damaged"]
    assert any("step-000000020" in problem for problem in told["problems"])


def test_without_checkpoints_the_best_is_the_monitored_curve_s(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "step,val_loss\n10,0.5\n20,nan\n30,0.25\n40,0.75\n")
    monitor = "ModelCheckpoint(monitor='val_loss', mode='min', every={0: 1})"
    write_journal(run, (0, "began", 0, 0, {"trainer": {"callbacks": ["EarlyStopping", monitor]}}))
    assert read(run)[0]["best"] == {"value": 0.25, "step": 30, "checkpoint": None}


def test_settings_are_those_of_the_newest_process_flat(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "step,loss\n1,2\n")
    given = {"hyper_parameters": {"net": {"width": 3}, "sizes": [1, 2]}, "trainer": {"max_epochs": 2}}
    write_journal(run, (0, "began", 0, 0, given), (1, "began", 0, 0, {**given, "environment": {"device": "cpu"}}))
    assert read(run)[0]["settings"] == {
        "hyper_parameters.net.width": "3",
        "hyper_parameters.sizes": "1, 2",
        "trainer.max_epochs": "2",
        "environment.device": "cpu",
    }


def test_the_configuration_of_paddlelite_fit_is_shown_as_it_stands(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "step,loss\n1,2\n")
    assert read(run)[0]["config"] is None
    (run / "config.yaml").write_text("model: {class_path: mine.Net}\n")
    assert read(run)[0]["config"] == "model: {class_path: mine.Net}\n"


def test_the_profile_and_the_log_are_read(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "step,loss\n1,2\n")
    (run / "profile.txt").write_text(
        "Where the 2.000 s of this fit went, steps 0 to 9, without what came before the first batch:\n"
        "part                 seconds   share      calls   us a call\n"
        "training_step          1.500   75.0%          9       166.7\n"
        "everything else        0.500   25.0%\n"
        "all                    2.000  100.0%\nno batch was copied ahead\n\n"
    )
    (run / "train.log").write_text(
        "note         WARNING: mind the gap\nWARNING: mind the gap\n"
        "epoch 1/3  step 5/10  lr 0.1  loss 0.4  ips 812/s  wait 4 %  eta 0:12\n"
        "Epoch 1/3  10 batches  1.5 s    loss 1.03\nEpoch 2/3  10 batches  1:02:03  loss 1.03\n"
        "Traceback (most recent call last):\n  File x\n    y = 1\nValueError: mine\nmore\n"
    )
    (told,) = read(run)
    (profile,) = told["profiles"]
    assert profile["rows"] == [["training_step", 1.5, 75.0, 9], ["everything else", 0.5, 25.0, 0]]
    assert profile["notes"] == ["no batch was copied ahead"]
    log = told["log"]
    assert log["warnings"] == [["mind the gap", 2]] and log["error"].endswith("ValueError: mine")
    assert (log["epochs"], log["pace"]) == ([(1, 1.5), (2, 3723.0)], [[0.5, 812.0, 0.04]])


# -- which runs, and where to ----------------------------------------------------------------------------------------
def test_runs_are_found_below_folders_and_once(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "runs" / name) for name in ("version_2", "version_10", "sweep/a/version_0")]
    save(runs[0], 10)
    (tmp_path / "runs" / "loop").symlink_to(tmp_path / "runs")
    found = read(tmp_path / "runs", runs[0], runs[0] / "latest", runs[0] / "checkpoints")
    assert [run["name"] for run in found] == ["sweep/a/version_0", "version_2", "version_10"]


def test_runs_that_come_and_grow_are_seen_and_others_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from paddlelite_trainer.cli.report import everything

    looked: list[str] = []
    real = everything.run_at
    monkeypatch.setattr(everything, "run_at", lambda path, *rest: (looked.append(path.name), real(path, *rest))[1])
    old = write_run(tmp_path / "runs" / "old", "step,loss\n1,2\n")
    write_run(tmp_path / "runs" / "still", "step,loss\n1,2\n")
    collection = Collection([str(tmp_path / "runs")])
    collection.read()
    with (old / "metrics.csv").open("a") as file:
        file.write("2,3\n")
    write_run(tmp_path / "runs" / "young", "step,loss\n1,2\n")
    runs = collection.read()["runs"]
    assert looked == ["old", "still", "old", "young"]
    assert [run["curves"]["loss"]["x"] for run in runs] == [[1, 2], [1], [1]]


def test_wrong_arguments_get_one_line(tmp_path: Path, made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert made("nowhere")[::2] == (3, f"paddlelite: no run at {tmp_path / 'nowhere'}\n")
    assert made("empty")[::2] == (3, f"paddlelite: no run in {tmp_path / 'empty'}\n")
    assert made()[::2] == (3, f"paddlelite: no run at {tmp_path / 'runs'}\n")
    assert made("")[0] == 2


def test_only_an_earlier_report_is_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "runs" / "version_0", "step,loss\n1,2\n")
    output = tmp_path / "mine.html"
    command = ["report", str(tmp_path / "runs"), "-o", str(output)]
    assert [main(command), main(command)] == [0, 0]
    output.write_text("<p>my thesis")
    assert main(command) == 2
    assert "mine.html exists and is no report; choose another -o, or pass --force" in capsys.readouterr().err
    assert output.read_text() == "<p>my thesis"
    assert main([*command, "--force"]) == 0 and "my thesis" not in output.read_text()
    assert main([*command[:-1], str(tmp_path)]) == 2 and main([*command[:-1], str(tmp_path / "no/where.html")]) == 2


def test_a_missing_library_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "version_0")
    monkeypatch.setattr(report, "find_spec", lambda name: None)
    assert main(["report", str(tmp_path)]) == 2
    expected = "paddlelite: paddlelite report needs jinja2 and plotly: pip install 'paddlelite_trainer[report]'\n"
    assert capsys.readouterr().err == expected


def test_where_to_serve_is_for_a_report_that_is_served(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "--port", "0"]) == 2
    assert "--port is for a report that is served: add --watch" in capsys.readouterr().err
