"""Which checkpoint a `ckpt_path` means."""

import os
import warnings
from pathlib import Path

import pytest
from run_support import damage, save

from paddlelite_trainer.errors import (
    CheckpointCorruptError,
    CheckpointNotFoundError,
    ConfigurationError,
    ConfigurationTypeError,
)
from paddlelite_trainer.run.directory import RunDirectory
from paddlelite_trainer.run.resolve import resolve


# -- ckpt_path -------------------------------------------------------------------------------------------------------
def test_none_is_a_fresh_run(tmp_path):
    save(tmp_path / "version_0", 1)
    resolution = resolve(None, default_root_dir=tmp_path)
    assert (resolution.fresh, resolution.run_dir, resolution.entry) == (True, None, None)


@pytest.mark.parametrize("word", ["last", "latest"])
def test_last_goes_on_with_the_newest_run_that_has_a_checkpoint(tmp_path, word):
    save(tmp_path / "version_2", 50)
    save(tmp_path / "version_10", 7)
    (tmp_path / "version_11" / "checkpoints").mkdir(parents=True)
    resolution = resolve(word, default_root_dir=tmp_path)
    assert (resolution.run_dir, resolution.entry.step, resolution.fresh) == (tmp_path / "version_10", 7, False)
    assert "going on with" in resolution.message and "step 7" in resolution.message


def test_last_without_any_checkpoint_starts_afresh_and_says_so(tmp_path):
    resolution = resolve("last", default_root_dir=tmp_path / "absent")
    assert resolution.fresh
    assert resolution.message == f"no checkpoint in {tmp_path / 'absent'} yet: fresh run"


def test_last_stays_within_a_named_run(tmp_path):
    save(tmp_path / "version_0", 5)
    save(tmp_path / "x", 3)
    assert resolve("last", default_root_dir=tmp_path, run_name="x").entry.step == 3
    assert resolve("last", default_root_dir=tmp_path, run_name="y").fresh
    assert resolve("last", default_root_dir="elsewhere", run_name=str(tmp_path / "x")).entry.step == 3


def test_a_run_is_found_by_its_path_from_a_root_that_is_a_link(tmp_path):
    save(tmp_path / "far" / "away" / "runs" / "version_0", 3)
    (tmp_path / "link").symlink_to("far/away/runs")
    run = RunDirectory.resume(tmp_path / "link" / "version_0")
    run.close()
    name = os.path.relpath(run.path, tmp_path / "link")
    assert resolve("last", default_root_dir=tmp_path / "link", run_name=name).run_dir == run.path
    assert resolve("last", default_root_dir=tmp_path / "link").run_dir == run.path


def test_a_fresh_start_mentions_runs_with_names(tmp_path):
    save(tmp_path / "mine", 3)
    assert "run_name=: mine" in resolve("last", default_root_dir=tmp_path).message


def test_last_falls_back_from_a_damaged_checkpoint_and_says_so(tmp_path):
    save(tmp_path / "version_0", 1)
    damage(save(tmp_path / "version_0", 2))
    found = resolve("last", default_root_dir=tmp_path)
    assert found.entry.step == 1
    assert "step-000000002 is damaged; using step-000000001" in found.findings[0]
    assert found.damaged == ("step-000000002",)


def test_checkpoints_none_of_which_verifies_are_an_error_and_no_fresh_start(tmp_path):
    save(tmp_path / "version_0", 9)
    for step in (1, 2):
        damage(save(tmp_path / "version_1", step))
    with pytest.raises(CheckpointCorruptError, match="none of them can be used"):
        resolve("last", default_root_dir=tmp_path)


@pytest.mark.parametrize("word", ["last", "best"])
def test_checkpoints_without_a_readable_manifest_are_no_fresh_start_either(tmp_path, word):
    (save(tmp_path / "version_0", 1).path / "manifest.json").write_bytes(b"")
    with pytest.raises(CheckpointCorruptError, match="none of them can be used"):
        resolve(word, default_root_dir=tmp_path)


def test_last_tells_how_the_run_ended(tmp_path):
    save(tmp_path / "version_0", 1)
    RunDirectory.resume(tmp_path / "version_0").close("stopped: patience")
    assert "stopped: patience" in resolve("last", default_root_dir=tmp_path).message


def test_best_is_the_pin_of_that_name(tmp_path):
    save(tmp_path / "version_0", 1, pins=["best"])
    save(tmp_path / "version_0", 2, pins=["best_b"])
    resolution = resolve("best", default_root_dir=tmp_path)
    assert (resolution.entry.step, resolution.run_dir) == (1, tmp_path / "version_0")


def test_best_is_the_only_monitored_metric_s(tmp_path):
    save(tmp_path / "version_0", 1, pins=["best_val_acc"])
    save(tmp_path / "version_0", 2)
    assert resolve("best", default_root_dir=tmp_path).entry.step == 1


def test_best_of_several_metrics_asks_which(tmp_path):
    save(tmp_path / "version_0", 1, pins=["best_val_acc"])
    save(tmp_path / "version_0", 2, pins=["best_val_loss"])
    with pytest.raises(ConfigurationError, match=r"best_val_acc, best_val_loss.*as ckpt_path='best_val_acc'"):
        resolve("best", default_root_dir=tmp_path)
    assert resolve("best_val_loss", default_root_dir=tmp_path).entry.step == 2


def test_best_where_nothing_was_monitored_is_an_error(tmp_path):
    save(tmp_path / "version_0", 1)
    with pytest.raises(ConfigurationError, match=r"nothing was monitored in .*version_0.*monitor="):
        resolve("best", default_root_dir=tmp_path)


def test_best_without_any_checkpoint_is_an_error(tmp_path):
    with pytest.raises(CheckpointNotFoundError, match="there is no checkpoint in"):
        resolve("best", default_root_dir=tmp_path)


def test_a_tag_names_a_checkpoint_of_the_newest_run_that_has_it(tmp_path):
    save(tmp_path / "version_0", 4, pins=["before-finetune"])
    save(tmp_path / "version_1", 9)
    resolution = resolve("before-finetune", default_root_dir=tmp_path)
    assert (resolution.entry.step, resolution.run_dir) == (4, tmp_path / "version_0")


def _spellings(run):
    step = run / "checkpoints" / "step-000000002"
    return {
        "directory": step,
        "run": run,
        "link": run / "latest",
        "weights link": run / "latest.pdparams",
        "weights file": step / "model.pdparams",
        "text": f"{step}/",
    }


@pytest.mark.parametrize("spelling", ["directory", "run", "link", "weights link", "weights file", "text"])
def test_a_path_may_be_spelt_in_many_ways(tmp_path, spelling):
    run = tmp_path / "läufe 1" / "version_0"
    save(run, 1)
    save(run, 2)
    resolution = resolve(_spellings(run)[spelling], default_root_dir=tmp_path / "elsewhere")
    assert (resolution.run_dir, resolution.entry.step) == (run, 2)


def test_a_relative_path_is_resolved_at_once(tmp_path, monkeypatch):
    save(tmp_path / "version_0", 2)
    monkeypatch.chdir(tmp_path)
    resolution = resolve("version_0/latest", default_root_dir=".")
    assert resolution.entry.path == tmp_path / "version_0" / "checkpoints" / "step-000000002"


def test_a_path_into_another_run_than_the_named_one_begins_a_fresh_run(tmp_path):
    entry = save(tmp_path / "version_0", 2)
    resolution = resolve(entry.path, default_root_dir=tmp_path, run_name="branch")
    assert (resolution.run_dir, resolution.entry.step, resolution.fresh) == (None, 2, False)
    assert resolve(entry.path, default_root_dir=tmp_path, run_name="version_0").run_dir is not None


def test_a_checkpoint_copied_out_of_its_run_begins_a_fresh_run(tmp_path):
    save(tmp_path / "version_0", 2).path.rename(tmp_path / "kept")
    resolution = resolve(tmp_path / "kept", default_root_dir=tmp_path)
    assert (resolution.run_dir, resolution.entry.step) == (None, 2)
    assert "fresh run from" in resolution.message


def test_a_path_to_a_damaged_manifest_is_refused(tmp_path):
    entry = save(tmp_path / "version_0", 2)
    (entry.path / "manifest.json").write_text("{}")
    with pytest.raises(CheckpointCorruptError, match=r"manifest\.json"):
        resolve(entry.path, default_root_dir=tmp_path)


def test_a_path_that_is_not_there_lists_what_is_near(tmp_path):
    save(tmp_path / "version_0", 2)
    with pytest.raises(
        CheckpointNotFoundError, match=r"step-000000003\. Did you mean 'step-000000002'\? .* holds .*step"
    ):
        resolve(tmp_path / "version_0/checkpoints/step-000000003", default_root_dir=tmp_path)
    with pytest.raises(CheckpointNotFoundError, match=r"absent/deep/x\. .* holds version_0"):
        resolve(tmp_path / "absent/deep/x", default_root_dir=tmp_path)


def test_a_misspelt_word_gets_did_you_mean(tmp_path):
    save(tmp_path / "version_0", 2, pins=["before-finetune"])
    for wrong, right in {"lsat": "last", "bset": "best", "before-finetun": "before-finetune"}.items():
        with pytest.raises(CheckpointNotFoundError, match=f"{wrong!r} is neither .* Did you mean '{right}'"):
            resolve(wrong, default_root_dir=tmp_path)


def test_a_run_without_checkpoints_says_so(tmp_path):
    (tmp_path / "version_0" / "checkpoints").mkdir(parents=True)
    with pytest.raises(CheckpointNotFoundError, match="has no checkpoint yet"):
        resolve(tmp_path / "version_0", default_root_dir=tmp_path)


def test_a_directory_of_something_else_points_to_load_weights(tmp_path):
    (tmp_path / "output").mkdir()
    with pytest.raises(CheckpointNotFoundError, match=r"neither a checkpoint nor a run.*load_weights"):
        resolve(tmp_path / "output", default_root_dir=tmp_path)


def test_another_type_is_refused(tmp_path):
    with pytest.raises(ConfigurationTypeError, match=r"ckpt_path must be None, 'last'.*got True \(bool\)"):
        resolve(True, default_root_dir=tmp_path)


def test_a_resumed_fit_verifies_its_checkpoint_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from models import Classifier, make_batches, quiet_trainer

    from paddlelite_trainer.callbacks import ModelCheckpoint
    from paddlelite_trainer.checkpoint import saved

    def fit(epochs: int) -> None:
        settings = {"enable_checkpointing": True, "callbacks": [ModelCheckpoint()], "default_root_dir": tmp_path}
        quiet_trainer(max_epochs=epochs, **settings).fit(Classifier(), make_batches(2), ckpt_path="last")

    fit(1)
    hashed = []
    monkeypatch.setattr(saved, "_hashes", lambda data, hashes=saved._hashes: hashed.append(len(data)) or hashes(data))
    fit(2)
    assert len(hashed) == 1


def test_a_checkpoint_passed_over_is_told_where_warnings_are_off_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from models import Classifier, make_batches, quiet_trainer

    from paddlelite_trainer.callbacks import ModelCheckpoint

    def fit(epochs: int) -> None:
        keeps = {"enable_checkpointing": True, "callbacks": [ModelCheckpoint(keep_last_n=3)]}
        quiet_trainer(max_epochs=epochs, default_root_dir=tmp_path, **keeps).fit(
            Classifier(), make_batches(2), ckpt_path="last"
        )

    fit(2)
    newest = tmp_path / "version_0/checkpoints/step-000000004/model.pdparams"
    newest.write_bytes(newest.read_bytes()[:-8])
    capsys.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit(3)
    told = capsys.readouterr().out
    assert "Checkpoint step-000000004 is damaged; using step-000000002" in told
    assert "finished" not in told


def test_other_hyper_parameters_than_the_checkpoints_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from models import Classifier, make_batches, quiet_trainer

    from paddlelite_trainer.callbacks import ModelCheckpoint

    for lr, epochs in ((0.1, 1), (0.2, 2)):
        settings = {"enable_checkpointing": True, "callbacks": [ModelCheckpoint()], "default_root_dir": tmp_path}
        quiet_trainer(max_epochs=epochs, **settings).fit(Classifier(lr=lr), make_batches(1), ckpt_path="last")
    assert "hyper-parameter lr: saved 0.1, now 0.2" in capsys.readouterr().out


@pytest.mark.parametrize("given", ["out", "out/best_accuracy", "out/best_accuracy.pdparams", "out/best_accuracy.pdopt"])
def test_another_program_s_checkpoint_is_refused_with_the_way_to_use_it(tmp_path, given):
    (tmp_path / "out").mkdir()
    for suffix in ("pdparams", "pdopt", "states"):
        (tmp_path / "out" / f"best_accuracy.{suffix}").write_bytes(b"")
    with pytest.raises(CheckpointNotFoundError, match=r"another program.*best_accuracy\.pdparams.*init_from=path"):
        resolve(str(tmp_path / given), default_root_dir=tmp_path / "runs")


def test_a_file_of_another_program_in_the_working_directory_is_found_by_its_bare_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "resnet.pdparams").write_bytes(b"")
    with pytest.raises(CheckpointNotFoundError, match=r"another program.*init_from"):
        resolve("resnet", default_root_dir=tmp_path / "runs")


@pytest.mark.parametrize(
    ("url", "remedy"),
    [("https://a.b/x.pdparams", "download it first"), ("s3://b/run", "RemoteCopy"), (Path("gs://b/run"), "RemoteCopy")],
)
def test_a_url_is_called_one_also_as_a_path_object(tmp_path, url, remedy):
    with pytest.raises(ConfigurationError, match=f"is a URL.*{remedy}"):
        resolve(url, default_root_dir=tmp_path)


@pytest.mark.parametrize("path", ["", Path("")])
def test_an_empty_path_is_a_variable_that_is_not_set(tmp_path, path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if path == "":
        with pytest.raises(ConfigurationError, match="ckpt_path is empty"):
            resolve(path, default_root_dir=tmp_path)
    else:  # a Path cannot be empty: it is the present directory
        with pytest.raises(CheckpointNotFoundError, match="neither a checkpoint nor a run"):
            resolve(path, default_root_dir=tmp_path)


def test_a_directory_of_runs_names_them_and_last(tmp_path):
    save(tmp_path / "runs" / "version_0", 1)
    save(tmp_path / "runs" / "version_1", 2)
    with pytest.raises(CheckpointNotFoundError, match=r"holds runs and is none itself.*version_1.*ckpt_path='last'"):
        resolve(tmp_path / "runs", default_root_dir=tmp_path / "elsewhere")
