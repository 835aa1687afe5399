"""`paddlelite ckpt tag`, `prune` and `repair`: what they change, and what they refuse."""

import json
import os
import re

import pytest
from cli_support import damage

from paddlelite_trainer.checkpoint import CheckpointReader, CheckpointStore
from paddlelite_trainer.checkpoint.foreign import load_foreign
from paddlelite_trainer.cli import FAILED, IN_USE, NOT_FOUND, OK, PROBLEMS, USAGE
from paddlelite_trainer.run.directory import RunDirectory


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
    assert CheckpointReader(run).pins()[name] == ("step-000000020",)
    assert call("tag", run / "10", name, "--move", "--force")[0] == OK
    assert CheckpointReader(run).pins()[name] == ("step-000000010",)
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
    damage(CheckpointReader(run).entries()[2], file)
    content = (damaged / file).read_bytes()
    code, out, _ = call("repair", run)
    assert code == PROBLEMS and "damaged, moved to checkpoints/.quarantine: step-000000030\n" in out
    assert (run / "checkpoints" / ".quarantine" / "step-000000030" / file).read_bytes() == content
    assert {(run / name).resolve().name for name in ("top", "latest", "best")} == {"step-000000020"}
    assert not (run / "keep_30").is_symlink()
    assert call("repair", run)[:2] == (OK, f"{run}: in order\n")
    assert call("verify", run)[0] == OK


def test_repair_of_a_run_without_a_sound_checkpoint_moves_nothing(call, run):
    for entry in CheckpointReader(run).entries():
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
    entries = CheckpointReader(run).entries()
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
