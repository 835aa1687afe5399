"""`paddlelite ckpt`: what it prints, what it changes and the exit codes that a script goes by."""

import errno
import io
import json
import os
import pty
import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from paddlelite_trainer import __version__
from paddlelite_trainer.checkpoint import CheckpointStore
from paddlelite_trainer.checkpoint.filesystem import REAL
from paddlelite_trainer.checkpoint.foreign import load_foreign
from paddlelite_trainer.checkpoint.safe_pickle import read_pickle
from paddlelite_trainer.checkpoint.safetensors_format import read_safetensors
from paddlelite_trainer.cli import FAILED, IN_USE, NOT_FOUND, OK, PROBLEMS, USAGE, main
from paddlelite_trainer.reporting.terminal import age, size
from paddlelite_trainer.run.directory import RunDirectory

ROOT = Path(__file__).parents[2]


def save(run, step, pins=(), healthy=True, **metrics):
    """Add a checkpoint whose values are its step; `pins` hold it beside `latest` and one of its own."""
    run.mkdir(parents=True, exist_ok=True)
    store = CheckpointStore(run)
    name = store.candidate(step, step // 10).name
    entry = store.save(
        step=step,
        epoch=step // 10,
        metrics=metrics,
        healthy=healthy,
        info={"config": {"batch_size": step}},
        files={
            "model.pdparams": {"w": np.full((2, 3), step, "f4"), "same": np.zeros(4, "f4")},
            "optimizer.pdopt": {"w.moment1": np.full((2, 3), step, "f4")},
        },
        states={"trainer.json": {"progress": {"step": step, "best": [step, 1.5]}}},
        pins={"latest": [name], f"keep_{step}": [name], **{pin: [name] for pin in pins}},
    )
    store.close()
    return entry


def damage(entry, file="model.pdparams"):
    path = entry.path / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.fixture
def run(tmp_path):
    """A run with the steps 10, 20 and 30, the second of them the best."""
    path = tmp_path / "runs" / "version_0"
    for step in (10, 20, 30):
        save(path, step, pins=["best"] if step == 20 else [], val_acc=step / 100)
    return path


@pytest.fixture
def call(capsys):
    """Run the command with these arguments: (exit code, stdout, stderr)."""

    def call(*arguments):
        code = main(["ckpt", *map(str, arguments)])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return call


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
    entries = CheckpointStore(run, read_only=True).entries()
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
    damage(CheckpointStore(run, read_only=True).entries()[0])
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
    damage(CheckpointStore(run, read_only=True).entries()[2])
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


@pytest.fixture
def no_permission(monkeypatch):
    """Make every reading of what is in the given path fail as it does for another user."""

    def forbid(path):
        inside = path.is_dir()

        def call(name, real, where):
            if path in where.parents if inside else where == path and name != "lstat":
                raise PermissionError(errno.EACCES, "Permission denied", str(where))
            return real(where)

        for name in ("map", "read", "lstat", "listdir"):
            monkeypatch.setattr(REAL, name, partial(call, name, getattr(REAL, name)))

    return forbid


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
    damage(CheckpointStore(run, read_only=True).entries()[0])
    assert call("verify", run)[0] == PROBLEMS


def test_a_damaged_checkpoint_is_not_tagged(call, run):
    damage(CheckpointStore(run, read_only=True).entries()[0])
    code, _, err = call("tag", run / "10", "mine")
    assert code == PROBLEMS and "step-000000010 is damaged and was not tagged: model.pdparams was altered" in err
    assert not (run / "mine").is_symlink()


@pytest.mark.parametrize("command", ["ls", "verify"])
def test_json_has_everything(call, run, command):
    save(run, 40, loss=float("nan"), gain=float("inf"))
    damage(CheckpointStore(run, read_only=True).entries()[0])
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
    damage(CheckpointStore(run, read_only=True).entries()[2])
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
    entry = CheckpointStore(run, read_only=True).entries()[0]
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


# -- tag, prune, repair ----------------------------------------------------------------------------------------------
def test_a_tag_keeps_a_checkpoint_and_is_a_link_any_paddle_tool_follows(call, run):
    code, out, _ = call("tag", run / "10", "before-finetune")
    assert (code, out) == (OK, f"step-000000010 is kept as before-finetune: {run / 'before-finetune'}\n")
    assert load_foreign(run / "before-finetune.pdparams").weights["w"][0, 0] == 10
    assert call("tag", run / "10", "before-finetune")[0] == OK


def test_a_tag_in_use_is_moved_only_when_asked(call, run):
    CheckpointStore(run).tag("step-000000020", "mine")
    code, _, err = call("tag", run / "10", "mine")
    assert (code, err) == (USAGE, "paddlelite: 'mine' already names step-000000020; --move takes it from there\n")
    assert call("tag", run / "10", "mine", "--move")[0] == OK
    assert json.loads(call("show", run / "mine", "--json")[1])["step"] == 10


def test_moving_a_tag_tells_what_is_deleted(call, run):
    store = CheckpointStore(run)
    store.set_pins({"mine": ["step-000000010"], "keep_10": []})
    code, out, _ = call("tag", run / "20", "mine", "--move")
    told = "step-000000010, which no other name held, was deleted"
    assert (code, out) == (OK, f"step-000000020 is kept as mine: {run / 'mine'}; {told}\n")
    assert not (run / "checkpoints" / "step-000000010").exists()
    CheckpointStore(run).set_pins({"mine": ["step-000000020"], "keep_20": [], "best": []})
    code, out, _ = call("tag", run / "30", "mine", "--move", "--json")
    assert (code, json.loads(out)["deleted"]) == (OK, ["step-000000020"])


@pytest.mark.parametrize(
    "name", ["latest", "best", "best_val_loss", "recent", "epoch_3", "imported-best", "before-lr-drop-epoch_3"]
)
def test_a_name_that_the_run_manages_is_moved_and_removed_only_with_force(call, run, name):
    CheckpointStore(run).set_pins({name: ["step-000000020"]})
    for arguments in ([run / "10", name, "--move"], [run, name, "--remove"]):
        code, _, err = call("tag", *arguments)
        assert code == USAGE and err.startswith(f"paddlelite: the run manages the name {name!r} itself")
        assert err.endswith("or pass --force\n")
    assert call("tag", run / "20", name)[0] == OK  # which it has already
    assert CheckpointStore(run, read_only=True).pins()[name] == ("step-000000020",)
    assert call("tag", run / "10", name, "--move", "--force")[0] == OK
    assert CheckpointStore(run, read_only=True).pins()[name] == ("step-000000010",)
    assert call("tag", run, name, "--remove", "--force")[0] == OK


def test_a_name_that_the_run_would_manage_is_not_given_either(call, run):
    code, _, err = call("tag", run / "10", "epoch_1")
    assert code == USAGE and "choose a name of your own" in err
    assert call("tag", run / "10", "epochs_are_over")[0] == OK


def test_a_tag_beside_a_foreign_file_of_its_name_says_that_no_link_was_made(call, run):
    (run / "notes").write_text("mine")
    code, out, err = call("tag", run / "10", "notes")
    assert (code, out) == (OK, "step-000000010 is kept as notes, and no link leads to it\n")
    assert f"{run / 'notes'} is not ours and was left as it is" in err
    assert json.loads(call("tag", run / "10", "notes", "--json")[1])["link"] is None
    assert json.loads(call("show", run / "notes", "--json")[1])["step"] == 10


def test_a_tag_that_cannot_be_a_file_name_is_refused(call, run):
    code, _, err = call("tag", run / "10", "a/b")
    assert code == USAGE and "got 'a/b'" in err


def test_removing_a_tag_tells_what_is_deleted(call, run):
    code, out, _ = call("tag", run, "keep_10", "--remove", "--json")
    assert (code, json.loads(out)["deleted"]) == (OK, ["step-000000010"])
    code, _, err = call("tag", run, "kep_20", "--remove")
    assert code == NOT_FOUND and "Did you mean 'keep_20'?" in err


def test_prune_deletes_what_no_name_holds_and_a_dry_run_only_tells(call, run):
    CheckpointStore(run).set_aside_after(20)
    code, out, _ = call("prune", run.parent, "--dry-run", "--superseded")
    aside = run / "checkpoints" / ".superseded" / "step-000000030"
    assert code == OK and out.startswith(f"would delete {aside}  ") and "1 checkpoint, " in out
    assert aside.exists()
    code, out, _ = call("prune", run, "--superseded", "--json")
    assert (code, json.loads(out)["deleted"]) == (OK, [str(aside)])
    assert not aside.exists()
    assert call("prune", run)[1] == "nothing to delete: every checkpoint is held by a name\n"


def test_repair_rebuilds_links_and_deletes_leftovers(call, run):
    leftover = run / "checkpoints" / ".trash-step-000000005-0123abcd"
    leftover.mkdir()
    (run / "best.pdparams").unlink()
    (run / "notes.txt").write_text("mine")
    code, out, _ = call("repair", run)
    assert (code, out) == (
        OK,
        f"{run}: put in order: best.pdparams, checkpoints/.trash-step-000000005-0123abcd\n",
    )
    assert (run / "best.pdparams").exists() and not leftover.exists() and (run / "notes.txt").exists()
    assert call("repair", run)[1] == f"{run}: in order\n"


@pytest.mark.parametrize("file", ["model.pdparams", "manifest.json"])
def test_repair_moves_damaged_checkpoints_to_quarantine_and_the_links_go_on_without_them(call, run, file):
    CheckpointStore(run).set_pins({"top": ["step-000000030", "step-000000020"]})
    damaged = run / "checkpoints" / "step-000000030"
    damage(CheckpointStore(run, read_only=True).entries()[2], file)
    content = (damaged / file).read_bytes()
    code, out, _ = call("repair", run)
    assert code == PROBLEMS and "damaged, moved to checkpoints/.quarantine: step-000000030\n" in out
    assert (run / "checkpoints" / ".quarantine" / "step-000000030" / file).read_bytes() == content
    assert {(run / name).resolve().name for name in ("top", "latest", "best")} == {"step-000000020"}
    assert not (run / "keep_30").is_symlink()
    assert call("repair", run)[:2] == (OK, f"{run}: in order\n")
    assert call("verify", run)[0] == OK


def test_repair_of_a_run_without_a_sound_checkpoint_moves_nothing(call, run):
    for entry in CheckpointStore(run, read_only=True).entries():
        damage(entry)
    before = sorted(run.rglob("*"))
    code, out, _ = call("repair", run)
    assert code == PROBLEMS and "damaged, and left where they are, for none is sound: step-000000010, step-" in out
    assert sorted(path for path in run.rglob("*") if path.name != ".lock") == before
    assert json.loads(call("repair", run, "--json")[1])[0]["moved"] == []


def test_a_run_none_of_which_may_be_read_is_unreadable_and_not_damaged(call, run, tmp_path, no_permission):
    for directory in sorted((run / "checkpoints").glob("step-*")):
        no_permission(directory / "model.pdparams")
    code, _, told = call("export", run, tmp_path / "w.safetensors")
    assert code == FAILED
    assert "none of them can be read" in told and "Permission denied" in told


def test_repair_leaves_what_it_may_not_read(call, run, no_permission):
    no_permission(run / "checkpoints" / "step-000000010" / "model.pdparams")
    code, out, _ = call("repair", run)
    assert code == FAILED and "cannot be read, left as it is: step-000000010\n" in out
    assert (run / "checkpoints" / "step-000000010").exists()


def test_prune_deletes_what_was_set_aside_as_damaged_only_when_asked(call, run):
    entries = CheckpointStore(run, read_only=True).entries()
    damage(entries[0])
    damage(entries[1], "manifest.json")
    call("repair", run)
    folder = run / "checkpoints" / ".quarantine"
    (folder / "step-000000020").rename(folder / "step-000000010.1")
    (folder / "notes.txt").write_text("mine")
    assert call("prune", run)[1] == "nothing to delete: every checkpoint is held by a name\n"
    code, out, _ = call("prune", run, "--quarantine", "--dry-run")
    first, second = folder / "step-000000010", folder / "step-000000010.1"
    assert code == OK and re.search(
        rf"would delete {first}  [\d.]+ k?B\nwould delete {second}  .*\n2 checkpoints, ", out
    )
    assert first.exists()
    code, out, _ = call("prune", run, "--quarantine", "--json")
    record = json.loads(out)
    assert code == OK and record["deleted"] == [str(first), str(second)] and record["bytes"] > 1000
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    "arguments", [["tag", "10", "x"], ["tag", "", "keep_10", "--remove"], ["prune", ""], ["repair", ""]]
)
def test_a_run_in_use_is_left_alone(call, run, arguments):
    in_use = RunDirectory.resume(run)
    before = sorted(path.name for path in run.rglob("*"))
    code, _, err = call(arguments[0], run / arguments[1], *arguments[2:])
    assert code == IN_USE and f"in use by process {os.getpid()}" in err
    assert sorted(path.name for path in run.rglob("*")) == before
    in_use.close()
    assert call("ls", run)[0] == OK


# -- export ----------------------------------------------------------------------------------------------------------
def test_export_writes_safetensors_with_bfloat16(call, tmp_path):
    class BFloat16:
        dtype, shape = "paddle.bfloat16", [2]

        def numpy(self):
            return np.array([16256, 16384], "u2")

    (tmp_path / "run").mkdir()
    store = CheckpointStore(tmp_path / "run")
    tensors = {"half": BFloat16(), "whole": np.arange(3)}
    store.save(
        step=1, epoch=0, files={"model.pdparams": tensors}, states={}, pins={"latest": [store.candidate(1, 0).name]}
    )
    code, out, _ = call("export", tmp_path / "run", tmp_path / "w.safetensors")
    assert code == OK and out.endswith(" B\n")
    arrays, bfloat16 = read_safetensors(tmp_path / "w.safetensors")
    assert bfloat16 == {"half"}
    assert (arrays["half"].tolist(), arrays["whole"].tolist()) == ([16256, 16384], [0, 1, 2])


def test_export_writes_a_bare_paddle_file(call, run, tmp_path):
    assert call("export", run / "best", tmp_path / "w.pdparams")[0] == OK
    found = load_foreign(tmp_path / "w.pdparams")
    assert (found.layout, found.weights["w"][0, 0]) == ("paddle.save", 20)


def test_the_suffix_says_what_is_exported(call, run, tmp_path):
    code, out, _ = call("export", run / "best", tmp_path / "w.pdopt")
    assert code == OK and out.startswith("optimizer.pdopt of ")
    assert next(iter(read_pickle(tmp_path / "w.pdopt"))) == "w.moment1"
    assert call("export", run / "best", tmp_path / "o.safetensors", "--what", "optimizer")[0] == OK
    assert list(read_safetensors(tmp_path / "o.safetensors")[0]) == ["w.moment1"]


def test_a_full_disk_is_told_with_the_wanted_file_and_the_sizes(call, run, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("paddlelite_trainer.cli.write_safetensors", full)
    monkeypatch.setattr("shutil.copyfile", full)
    for name in ("w.safetensors", "w.pdparams"):
        code, _, err = call("export", run, tmp_path / name)
        said = (
            rf"{tmp_path / name} cannot be written: No space left on device: "
            r"about \d+ B are needed; [\d.]+ \wB were free"
        )
        assert code == FAILED and re.search(said, err)


def test_export_replaces_a_file_only_when_asked(call, run, tmp_path):
    (tmp_path / "w.pdparams").write_text("precious")
    code, _, err = call("export", run, tmp_path / "w.pdparams")
    assert (code, err) == (USAGE, f"paddlelite: {tmp_path / 'w.pdparams'} exists; --force replaces it\n")
    assert (tmp_path / "w.pdparams").read_text() == "precious"
    assert call("export", run, tmp_path / "w.pdparams", "--force")[0] == OK
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs", "w.pdparams"]


@pytest.mark.parametrize(
    ("output", "more", "code", "message"),
    [
        ("w.pt", [], USAGE, ".pdparams for weights, .pdopt for the optimizer; got 'w.pt'"),
        (
            "w.pdopt",
            ["--what", "model"],
            USAGE,
            "--what model is written to a file that ends in .safetensors or .pdparams",
        ),
        ("w.pdparams", ["--what", "optimizer"], USAGE, "ends in .safetensors or .pdopt, got 'w.pdparams'"),
        ("w.pdparams", ["--what", "ema"], NOT_FOUND, "has no ema.pdparams; it has model.pdparams"),
        ("absent/w.pdparams", [], FAILED, "absent/w.pdparams cannot be written: there is no directory "),
    ],
)
def test_an_export_that_cannot_be_is_refused_and_leaves_nothing(call, run, tmp_path, output, more, code, message):
    got, _, err = call("export", run, tmp_path / output, *more)
    assert got == code and message in err and err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_a_damaged_checkpoint_is_not_exported(call, run, tmp_path):
    damage(CheckpointStore(run, read_only=True).entries()[0])
    code, _, err = call("export", run / "10", tmp_path / "w.pdparams")
    assert code == PROBLEMS and err.count("\n") == 1
    assert not (tmp_path / "w.pdparams").exists()


# -- errors, help and the terminal -----------------------------------------------------------------------------------
def test_what_is_not_there_is_named_with_what_is_near(call, run):
    code, out, err = call("ls", run.parent / "versoin_0")
    assert (code, out) == (NOT_FOUND, "")
    assert "Did you mean 'version_0'?" in err and err.count("\n") == 1
    code, _, err = call("show", run / "31")
    assert code == NOT_FOUND and err.endswith(f"{run} holds 10, 20, 30, latest, keep_10, keep_20, best, keep_30.\n")
    code, _, err = call("ls", ROOT / "docs")
    assert code == NOT_FOUND and "no run and no checkpoint in" in err


@pytest.mark.parametrize("name", ["evil1.pdparams", "w.safetensors"])
def test_a_file_of_bare_weights_is_named_as_such_with_what_opens_it(call, tmp_path, name):
    for each in (name, "evil6.pdparams"):
        (tmp_path / each).write_bytes(b"x")
    code, _, err = call("show", tmp_path / name)
    what = f"paddlelite: {tmp_path / name} is a file of bare weights and no checkpoint of a run. "
    assert (code, err) == (NOT_FOUND, f"{what}load_weights(layer, path) and fit(init_from=path) open it\n")


def test_what_is_there_and_is_something_else_brings_no_suggestion(call, tmp_path):
    for name in ("passwd", "passwd-"):
        (tmp_path / name).write_text("x")
    code, _, err = call("show", tmp_path / "passwd")
    assert (code, err) == (NOT_FOUND, f"paddlelite: {tmp_path / 'passwd'} is no run and no checkpoint\n")


def test_an_empty_path_is_told_as_such(call):
    code, _, err = call("show", "")
    assert code == USAGE and err.startswith("paddlelite: the path of a run or a checkpoint is empty")


def test_one_checkpoint_is_asked_for_where_there_are_several_runs(call, run):
    save(run.parent / "version_1", 1)
    code, _, err = call("show", run.parent)
    assert code == USAGE and f"has 2 runs; name one of them, such as {run.parent}/version_1/latest" in err


@pytest.mark.parametrize("arguments", [[], ["ckpt"], ["ckpt", "lss"], ["ckpt", "diff", "a"], ["ckpt", "ls", "--jsn"]])
def test_a_wrong_command_line_is_exit_code_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == USAGE and "usage: paddlelite" in capsys.readouterr().err


def test_help_has_examples_and_exit_codes(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["ckpt", "--help"])
    out = capsys.readouterr().out
    assert caught.value.code == 0
    for word in ("examples:", "exit codes:", "ls", "show", "verify", "diff", "tag", "prune", "export", "repair"):
        assert word in out
    examples = re.findall(r"^  paddlelite ckpt .*\S(?=  )  +", out, re.MULTILINE)
    assert len(examples) == 3 and len({len(example) for example in examples}) == 1
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"paddlelite {__version__}\n"


def command(*arguments, **options):
    block = (
        "import sys; sys.modules['paddle'] = None; from paddlelite_trainer import cli; sys.exit(cli.main(sys.argv[1:]))"
    )
    return subprocess.Popen([sys.executable, "-c", block, "ckpt", *map(str, arguments)], cwd=ROOT, **options)


def test_every_command_works_without_paddle(run, tmp_path):
    code = """
import sys
sys.modules["paddle"] = None
from paddlelite_trainer.cli import main
run, output = sys.argv[1:]
for arguments in (
    ["ls", run], ["show", run], ["verify", run], ["diff", run + "/20", run + "/best"], ["tag", run + "/10", "mine"],
    ["prune", run], ["repair", run], ["export", run, output + ".safetensors"], ["export", run, output + ".pdparams"],
):
    assert main(["ckpt", *arguments]) == 0, arguments
"""
    subprocess.run([sys.executable, "-c", code, run, tmp_path / "w"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def test_json_is_printed_without_loading_rich(run):
    code = (
        "import sys; from paddlelite_trainer.cli import main; main(['ckpt', 'ls', sys.argv[1], '--json']);"
        "assert not {'rich', 'paddle', 'tensorboardX'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, run], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def test_a_reader_that_leaves_early_is_no_error(run):
    process = command("ls", run, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == (b"", OK)


def test_a_row_is_one_line_in_a_pipe_however_long(call, run):
    save(run, 40, **{f"a_rather_long_metric_{i}": 0.5 for i in range(20)})
    lines = call("ls", run)[1].splitlines()
    assert len(lines) == 6 and lines[5].count("a_rather_long_metric") == 20


def on_terminal(width, *arguments):
    """What a terminal of this width is sent, without colours."""
    ours, theirs = pty.openpty()
    process = command(
        *arguments, stdout=theirs, stderr=theirs, env={**os.environ, "COLUMNS": str(width), "TERM": "xterm"}
    )
    os.close(theirs)
    received = io.BytesIO()
    try:
        while chunk := os.read(ours, 65536):
            received.write(chunk)
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    assert process.wait() in (OK, PROBLEMS)
    return re.sub(r"\x1b\[[\d;]*m", "", received.getvalue().decode()).replace("\r\n", "\n").splitlines()


@pytest.mark.parametrize("width", [50, 60, 80, 120])
def test_a_table_fits_the_terminal_and_breaks_no_name(run, width):
    CheckpointStore(run).tag("step-000000010", "epoch=01-val_accuracy=0.100")
    save(run, 40, val_loss_of_the_epoch=0.125, val_acc=0.5)
    lines = on_terminal(width, "ls", run)[1:]
    assert max(map(len, lines)) <= width
    for whole in ("epoch=01-val_accuracy=0.100", "val_loss_of_the_epoch 0.125", "val_acc 0.5", "verified", "kept as"):
        assert any(whole in line for line in lines), whole


@pytest.mark.parametrize("width", [50, 60, 80])
def test_long_names_break_after_a_slash_a_dot_or_an_underscore_only(run, width):
    name = "optimizer_0/backbone.layer1.0.conv_block.weight/moment1_and_more"
    for step in (40, 50):
        store = CheckpointStore(run)
        pins = {"latest": [store.candidate(step, 4).name], f"keep_{step}": [store.candidate(step, 4).name]}
        store.save(step=step, epoch=4, files={"optimizer.pdopt": {name: np.full(2, step)}}, states={}, pins=pins)
    directory = str(run / "checkpoints" / "step-000000040")
    for arguments in (["show", run / "40", "--tensors"], ["diff", run / "40", run / "50"]):
        lines = on_terminal(width, *arguments)
        for part in re.findall(r"[^/._ ]+[/._]?", f"{name} {directory}" if arguments[0] == "show" else name):
            assert any(part in line for line in lines), part
        if arguments[0] == "show":
            assert max(map(len, lines)) <= width
        for heading in ("optimizer.pdopt", "shape" if arguments[0] == "show" else "largest difference"):
            assert any(re.search(rf"(^| ){heading}( |$)", line) for line in lines), heading


def test_a_name_cannot_steer_the_terminal(call, run):
    save(run, 40, **{"\x1b[2Jevil\r": 0.5})
    out = call("ls", run)[1]
    assert "\x1b" not in out and "\\x1b[2Jevil\\r 0.5" in out


def test_an_ascii_terminal_shows_other_letters_escaped(run):
    strange = run.rename(run.with_name("läufe"))
    process = command("ls", strange, stdout=subprocess.PIPE, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert b"l\\xe4ufe" in process.communicate()[0] and process.returncode == OK


@pytest.mark.parametrize(
    ("nbytes", "said"),
    [
        *((0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (99_940, "99.9 kB")),
        *((482_000, "482 kB"), (2.5e9, "2.5 GB"), (3e13, "30.0 TB")),
    ],
)
def test_sizes_are_humane(nbytes, said):
    assert size(nbytes) == said


@pytest.mark.parametrize(
    ("seconds", "said"), [(-5, "0 s"), (89, "89 s"), (90, "2 min"), (7200, "2 h"), (200_000, "2 d"), (None, "?")]
)
def test_ages_are_humane(seconds, said):
    assert age(seconds) == said
