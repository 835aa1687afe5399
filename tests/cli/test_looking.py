"""`paddlelite ckpt ls`, `verify`, `show` and `diff`: what they print, and that they change nothing."""

import json
import os
import re
import shutil

import numpy as np
import pytest
from cli_support import damage, save

from paddlelite_trainer import __version__
from paddlelite_trainer.checkpoint import CheckpointReader, CheckpointStore
from paddlelite_trainer.cli import FAILED, OK, PROBLEMS
from paddlelite_trainer.run.directory import RunDirectory


# -- ls and verify ---------------------------------------------------------------------------------------------------
def test_ls_lists_the_checkpoints_of_a_run_oldest_first(call, run):
    code, out, _ = call("ls", run)
    lines = out.splitlines()
    assert code == OK
    assert lines[0] == str(run)
    assert lines[1].split() == ["step", "epoch", "metrics", "size", "kept", "as", "verified", "age"]
    assert [line.split()[0] for line in lines[2:]] == ["10", "20", "30"]
    assert re.search(r" 20 +2 +val_acc 0.2 +[\d.]+ k?B +keep_20, best +yes +\d+ s", lines[3])


def test_ls_shows_every_run_below_a_directory_by_number_and_how_each_ended(call, run):
    for number in (2, 10):
        save(run.parent / f"version_{number}", 5)
    save(run.parent / "group" / "named", 7)
    RunDirectory.resume(run).close("stopped: patience")
    _, out, _ = call("ls", run.parent)
    titles = [line for line in out.splitlines() if line.startswith("/")]
    names = ["group/named", "version_0  stopped: patience", "version_2", "version_10"]
    assert titles == [f"{run.parent}/{name}" for name in names]


def test_ls_shows_damaged_checkpoints_as_such_and_verify_says_what_is_wrong(call, run):
    entries = CheckpointReader(run).entries()
    damage(entries[0])
    (entries[2].path / "manifest.json").write_bytes(b"")
    code, out, _ = call("ls", run)
    assert code == OK
    assert [line.split()[0] for line in out.splitlines() if "DAMAGED" in line] == ["10", "30"]
    code, out, _ = call("verify", run)
    assert code == PROBLEMS
    assert re.search(r"damaged +\S+step-000000010\n +model\.pdparams .*SHA-256", out)
    assert re.search(r"ok +\S+step-000000020\n", out)
    assert re.search(r"damaged +\S+step-000000030\n +\S+manifest\.json", out)
    assert out.endswith("3 checkpoints, 2 damaged\n")


def test_ls_without_verifying_reads_no_files(call, run):
    damage(CheckpointReader(run).entries()[0])
    _, out, _ = call("ls", run, "--no-verify")
    assert "DAMAGED" not in out and "yes" not in out


def test_ls_leaves_a_blank_line_between_runs(call, run):
    save(run.parent / "version_1", 5)
    lines = call("ls", run.parent)[1].splitlines()
    assert [index for index, line in enumerate(lines) if not line] == [5] and len(lines) == 9


@pytest.mark.parametrize("info", [{"weights_only": True}, {}])
def test_checkpoints_of_weights_only_are_shown_as_such(call, run, info):
    store = CheckpointStore(run)
    weights, pins = {"model.pdparams": {"w": np.zeros(1)}}, {"light": [store.candidate(40, 4).name]}
    store.save(step=40, epoch=4, metrics={"val_acc": 0.4}, files=weights, states={}, pins=pins, info=info)
    lines = call("ls", run)[1].splitlines()
    assert [line.split()[0] for line in lines if "(weights only)" in line] == ["40"]
    assert "val_acc 0.4 (weights only)" in lines[-1]
    assert [row["weights_only"] for row in json.loads(call("ls", run, "--json")[1])] == [False, False, False, True]
    assert re.search(r"holds +weights only\n", call("show", run / "40")[1])


def test_a_warning_is_told_once(call, run):
    (run / "checkpoints" / "pins.json").write_bytes(b"{")
    assert call("ls", run)[2].count("The record of pins was rebuilt") == 1


def test_ls_mentions_what_was_set_aside(call, run):
    damage(CheckpointReader(run).entries()[2])
    with pytest.warns(UserWarning):
        CheckpointStore(run).newest()
    CheckpointStore(run).set_aside_after(10)
    _, out, _ = call("ls", run)
    assert "damaged, set aside in checkpoints/.quarantine: step-000000030" in out
    assert "superseded, set aside in checkpoints/.superseded: step-000000020" in out


def test_ls_of_an_empty_run_says_so(call, tmp_path):
    (tmp_path / "x" / "checkpoints").mkdir(parents=True)
    assert call("ls", tmp_path / "x")[:2] == (OK, f"{tmp_path / 'x'}\n  no checkpoints\n")


def test_ls_names_weights_that_are_not_finite(call, run):
    save(run, 40, healthy=False, loss=float("nan"))
    assert "loss nan (not finite)" in call("ls", run)[1]


@pytest.mark.parametrize("part", ["model.pdparams", "manifest.json", ""])
def test_what_may_not_be_read_is_unreadable_and_not_damaged(call, run, tmp_path, no_permission, part):
    directory = run / "checkpoints" / "step-000000020"
    no_permission(directory / part)
    code, out, _ = call("ls", run)
    assert code == OK
    assert [line.split()[0] for line in out.splitlines() if "unreadable" in line] == ["20"] and "DAMAGED" not in out
    code, out, _ = call("verify", run)
    assert code == FAILED and "Permission denied" in out
    assert out.endswith("3 checkpoints, 0 damaged, 1 unreadable\n")
    row = json.loads(call("verify", run / "20", "--json")[1])[0]
    assert (row["verified"], row["unreadable"]) == (None, True)
    for name, *more in (["show"], ["export", tmp_path / "w.pdparams"], ["diff", run / "10"], ["tag", "mine"]):
        for spelling in (run / "20", directory, run / "best"):
            code, out, err = call(name, spelling, *more)
            assert code == FAILED and "Permission denied" in out + err, (name, spelling)
    damage(CheckpointReader(run).entries()[0])
    assert call("verify", run)[0] == PROBLEMS


def test_a_damaged_checkpoint_is_not_tagged(call, run):
    damage(CheckpointReader(run).entries()[0])
    code, _, err = call("tag", run / "10", "mine")
    assert code == PROBLEMS and "step-000000010 is damaged and was not tagged: model.pdparams was altered" in err
    assert not (run / "mine").is_symlink()


@pytest.mark.parametrize("command", ["ls", "verify"])
def test_json_has_everything(call, run, command):
    save(run, 40, loss=float("nan"), gain=float("inf"))
    damage(CheckpointReader(run).entries()[0])
    code, out, _ = call(command, run, "--json")
    rows = json.loads(out)
    assert code == (PROBLEMS if command == "verify" else OK)
    assert [row["step"] for row in rows] == [10, 20, 30, 40]
    assert [row["verified"] for row in rows] == [False, True, True, True]
    assert "SHA-256" in rows[0]["problems"][0]
    assert rows[1]["pins"] == ["keep_20", "best"] and rows[1]["metrics"] == {"val_acc": 0.2}
    assert rows[3]["metrics"] == {"loss": "nan", "gain": "inf"}
    assert rows[1]["path"] == str(run / "checkpoints" / "step-000000020") and rows[1]["run"] == str(run)
    assert rows[1]["bytes"] > 0 and rows[1]["created"] and rows[1]["healthy"] is True


def test_verify_takes_several_paths(call, run):
    other = save(run.parent / "version_1", 5)
    code, out, _ = call("verify", run / "best", other.path)
    assert (code, out.count("ok ")) == (OK, 2)
    assert out.endswith("2 checkpoints, 0 damaged\n")


def test_reading_commands_change_nothing(call, run):
    damage(CheckpointReader(run).entries()[2])
    (run / "checkpoints" / ".tmp-step-000000040-00000000").mkdir()

    def everything():
        return sorted((str(path), path.lstat().st_mtime_ns) for path in run.rglob("*"))

    before = everything()
    for arguments in (["ls"], ["verify"], ["show"], ["prune", "--dry-run"]):
        call(arguments[0], run, *arguments[1:])
    call("diff", run / "10", run / "20")
    assert everything() == before


# -- show and diff ---------------------------------------------------------------------------------------------------
def spellings(run):
    step = run / "checkpoints" / "step-000000020"
    return [step, run / "best", run / "best.pdparams", run / "20", step / "model.pdparams", os.path.relpath(step)]


def test_a_checkpoint_may_be_named_in_many_ways(call, run):
    for spelling in spellings(run):
        assert json.loads(call("show", spelling, "--json")[1])["step"] == 20
    assert json.loads(call("show", run, "--json")[1])["step"] == 30


def test_a_name_without_a_link_is_found_too(call, run):
    for path in run.iterdir():
        if path.is_symlink():
            path.unlink()
    assert json.loads(call("show", run / "best", "--json")[1])["step"] == 20


@pytest.fixture
def two_best(run):
    """The run, whose pin `top` holds the steps 30 and 20, the better one first."""
    CheckpointStore(run).set_pins({"top": ["step-000000030", "step-000000020"]})
    return run


@pytest.mark.parametrize("harm", ["no manifest", "a torn manifest", "no directory"])
@pytest.mark.parametrize("has_link", [True, False])
def test_a_damaged_best_is_never_replaced_by_the_second_best_without_a_word(call, two_best, tmp_path, harm, has_link):
    directory = two_best / "checkpoints" / "step-000000030"
    if harm == "no directory":
        shutil.rmtree(directory)
    elif harm == "no manifest":
        (directory / "manifest.json").unlink()
    else:
        (directory / "manifest.json").write_bytes(b"{")
    if not has_link:
        (two_best / "top").unlink()
    commands = (["show"], ["export", tmp_path / "w.pdparams"], ["diff", two_best / "10"], ["tag", "mine"])
    for name, *more in commands:
        code, out, err = call(name, two_best / "top", *more)
        assert (code, out) == (PROBLEMS, ""), name
        assert "step-000000030" in err
    assert call("verify", two_best / "top")[0] == PROBLEMS
    assert not (tmp_path / "w.pdparams").exists() and not (two_best / "mine").is_symlink()


def test_the_error_about_a_damaged_best_names_the_sound_rest(call, two_best):
    (two_best / "checkpoints" / "step-000000030" / "manifest.json").unlink()
    _, _, err = call("show", two_best / "top")
    assert err.startswith(f"paddlelite: {two_best / 'top'} means step-000000030, and it is damaged: ")
    assert err.endswith("manifest.json is missing. Sound among the others that 'top' holds: step-000000020.\n")


@pytest.mark.parametrize("name", ["30", "step-000000030"])
def test_a_step_with_a_damaged_manifest_is_damaged_and_not_absent(call, run, name):
    path = run / "checkpoints" / "step-000000030" / "manifest.json"
    path.write_bytes(b"{")
    code, _, err = call("show", run / name if name == "30" else run / "checkpoints" / name)
    assert code == PROBLEMS and str(path) in err


def test_show_tells_what_is_in_a_checkpoint(call, run):
    code, out, _ = call("show", run / "best", "--tensors")
    facts = dict(line.split(None, 1) for line in out.split("\n\n")[0].splitlines())
    assert code == OK
    assert facts["step"].strip() == "20" and facts["verified"].strip() == "yes"
    assert facts["kept"].strip() == "as      keep_20, best"
    assert facts["info.config"].strip() == "{'batch_size': 20}"
    assert re.search(r"model\.pdparams +\d+ B +2 +10", out)
    assert re.search(r"w +float32 +\[2, 3\] +24 B", out)


def test_show_tells_every_version_once(call, run):
    store = CheckpointStore(run)
    info = {
        "paddlelite_trainer": __version__,
        "paddle": "3.3.1",
        "numpy": np.__version__,
        "python": "3.11",
        "device": "cpu",
    }
    store.save(step=40, epoch=4, files={}, states={}, pins={"latest": [store.candidate(40, 4).name]}, info=info)
    out = call("show", run / "40")[1]
    versions = f"paddlelite_trainer {__version__}, numpy {np.__version__}, python 3.11, paddle 3.3.1"
    assert re.search(rf"written by +{re.escape(versions)}\n", out)
    assert re.findall(r"info\.\S+", out) == ["info.device"]


def test_show_of_a_damaged_checkpoint_tells_what_its_manifest_says_and_what_is_wrong(call, run):
    entry = CheckpointReader(run).entries()[0]
    damage(entry)
    code, out, _ = call("show", run / "10")
    assert code == PROBLEMS
    assert re.search(r"verified +damaged", out) and "model.pdparams" in out and "SHA-256" in out
    assert json.loads(call("show", run / "10", "--json")[1])["verified"] is False


def test_diff_of_equal_checkpoints_is_none(call, run):
    assert call("diff", run / "best", run / "20")[0] == OK
    assert call("diff", run / "best", run / "20")[1].endswith("no difference\n")


def test_diff_tells_metrics_tensors_and_states_apart(call, run):
    code, out, _ = call("diff", run / "10", run / "20")
    assert code == PROBLEMS
    assert re.search(r"val_acc +0\.1 +0\.2", out)
    assert re.search(r"w +float32 \[2, 3\] +same shape and type +10\n", out)
    assert re.search(r"progress\.best\[0\] +10 +20", out)
    assert re.search(r"config\.batch_size +10 +20", out)
    assert "same  " not in out.replace("same shape", "")
    found = {
        (one["where"], one["name"]): one
        for one in json.loads(call("diff", run / "10", run / "20", "--json")[1])["differences"]
    }
    assert found["optimizer.pdopt", "w.moment1"]["largest"] == 10
    assert found["metrics", "val_acc"]["first"] == 0.1 and found["info", "epoch"]["second"] == 2
    assert len(found) == 7


def test_diff_knows_bfloat16_missing_tensors_shapes_and_nan(call, tmp_path):
    def write(name, **tensors):
        run = tmp_path / name
        run.mkdir()
        store = CheckpointStore(run)
        pins = {"latest": [store.candidate(1, 0).name]}
        store.save(step=1, epoch=0, files={"model.pdparams": tensors}, states={}, pins=pins)
        return run / "latest"

    first = write("a", nan=np.array([1, np.nan], "f4"), gone=np.zeros(1), shape=np.zeros(2), same=np.array([np.nan]))
    second = write(
        "b", nan=np.array([np.nan, np.nan], "f4"), new=np.zeros(1), shape=np.zeros(3), same=np.array([np.nan])
    )
    differences = json.loads(call("diff", first, second, "--json")[1])["differences"]
    found = {one["name"]: (one["first"], one["second"], one["largest"]) for one in differences}
    assert found == {
        "nan": ("float32 [2]", "float32 [2]", "nan"),
        "gone": ("float64 [1]", None, None),
        "new": (None, "float64 [1]", None),
        "shape": ("float64 [2]", "float64 [3]", None),
    }


def test_diff_lists_all_when_asked(call, tmp_path):
    entries = []
    for run, value in ((tmp_path / "a", 0), (tmp_path / "b", 1)):
        run.mkdir()
        store = CheckpointStore(run)
        states = {"trainer.json": {f"value_{i}": value for i in range(20)}}
        pins = {"latest": [store.candidate(1, 0).name]}
        entries.append(store.save(step=1, epoch=0, files={}, states=states, pins=pins).path)
    out = call("diff", *entries)[1]
    assert "and 12 more (--all lists them)" in out and out.endswith("20 differences\n")
    assert call("diff", *entries, "--all")[1].count("value_") == 20
