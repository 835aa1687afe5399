"""One URL is for one run: another is refused or told, two at once are noticed, and branches keep their names."""

from __future__ import annotations

import json
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from remote_support import below, hook, memory_url, overwrite, remove
from small_runs import batches, differing, net, trainer, whole_state

from paddlelite_trainer import Callback, Trainer
from paddlelite_trainer.callbacks import ModelCheckpoint, RemoteCopy
from paddlelite_trainer.checkpoint import Remote
from paddlelite_trainer.checkpoint.manifest import MANIFEST, seal, unseal
from paddlelite_trainer.checkpoint.remote import NAMES_COPY, NAMES_FILE, OwnCopies, copier
from paddlelite_trainer.checkpoint.remote.lease import LEASE_FILE
from paddlelite_trainer.errors import CheckpointNotFoundError, ConfigurationError
from paddlelite_trainer.run.whose import standing_of

sys.path.insert(0, str(Path(__file__).parents[1] / "checkpoint"))


@pytest.fixture(autouse=True)
def retry_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copier, "FIRST_RETRY_SECONDS", 0.001)
    monkeypatch.setattr(copier, "LONGEST_RETRY_SECONDS", 0.01)
    monkeypatch.setattr("paddlelite_trainer.run.remote_run.FIRST_RETRY_SECONDS", 0.001)


@pytest.fixture
def url() -> str:
    return memory_url()


def train(root: Path, copy: RemoteCopy | None, *more: Callback, ckpt_path: Any = "last", **until: int) -> Trainer:
    run = trainer(root, [ModelCheckpoint(), *([copy] if copy else []), *more], **{"max_epochs": None, **until})
    run.fit(net(), batches(), ckpt_path=ckpt_path)
    return run


def owner(root: Path) -> Any:
    return standing_of(root / "version_0").owner


def steps_there(url: str) -> list[int]:
    remote = Remote(url)
    return sorted(int(one.entry_name[5:14]) for one in remote.checkpoints() if remote.is_complete(one))


def down(copy: RemoteCopy) -> list[bool]:
    """Whether the remote does not answer; it may be changed."""
    is_down = [True]

    def around(number: int, name: str, args: Any, call: Any) -> Any:
        if is_down[0]:
            raise ConnectionError("no route to host")
        return call()

    hook(copy.remote, around)
    return is_down


class Up(Callback):
    """The remote is there again once the fit has begun."""

    def __init__(self, is_down: list[bool]) -> None:
        self.is_down = is_down

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.is_down[0] = False


# -- another run's -----------------------------------------------------------------------------------------------------


def test_a_run_is_the_same_on_every_machine_and_the_url_says_which(tmp_path: Path, url: str) -> None:
    train(tmp_path / "first", RemoteCopy(url), max_epochs=1)
    train(tmp_path / "second", RemoteCopy(url), max_epochs=2)
    assert owner(tmp_path / "first") == owner(tmp_path / "second") == Remote(url).record().owner


def test_a_run_is_refused_the_url_of_another_with_both(tmp_path: Path, url: str) -> None:
    train(tmp_path / "one", RemoteCopy(url), max_epochs=1)
    train(tmp_path / "other", None, max_epochs=2)
    before = below(url)
    with pytest.raises(ConfigurationError) as refused:
        train(tmp_path / "other", RemoteCopy(url), max_epochs=3)
    said = str(refused.value)
    assert f"it holds {owner(tmp_path / 'one')}, up to step-000000004; this is {owner(tmp_path / 'other')}" in said
    assert "choose another URL" in said and f"move {tmp_path / 'other' / 'version_0'} away" in said
    assert below(url) == before


def test_a_run_that_began_without_the_remote_is_told_when_it_is_there_again_and_refused_next_time(
    tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path / "one", RemoteCopy(url), max_epochs=1)
    before = below(url)
    copy = RemoteCopy(url, if_unreachable="local")
    run = train(tmp_path / "other", copy, Up(down(copy)), max_epochs=2)
    said = capsys.readouterr().out
    assert f"nothing is copied to {url}: it holds {owner(tmp_path / 'one')}, up to step-000000004; this is " in said
    assert said.count("WARNING: nothing is copied") == 1 and "Training goes on" in said
    assert run.global_step == 8 and copy.not_copied and below(url) == before
    with pytest.raises(ConfigurationError, match="hold different runs, which would be mixed"):
        train(tmp_path / "other", RemoteCopy(url), max_epochs=3)
    assert below(url) == before


def test_a_run_that_went_on_elsewhere_meanwhile_is_told_and_not_mixed(
    tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path / "here", RemoteCopy(url), max_epochs=1)
    train(tmp_path / "there", RemoteCopy(url), max_epochs=2)
    before = below(url)
    copy = RemoteCopy(url, if_unreachable="local")
    train(tmp_path / "here", copy, Up(down(copy)), max_epochs=3)
    assert "the run has gone on elsewhere, to step-000000008, which is not this one's past" in capsys.readouterr().out
    assert below(url) == before
    train(tmp_path / "here", RemoteCopy(url), max_epochs=4)  # with the remote it is known which is newer
    assert "on its branch from-12-" in capsys.readouterr().out
    assert 8 in steps_there(url) and steps_there(url)[-1] == 16
    assert owner(tmp_path / "here").branch.startswith("from-12-")


def test_a_copied_directory_beside_its_original_is_refused_the_original_s_url(tmp_path: Path, url: str) -> None:
    train(tmp_path / "a", RemoteCopy(url), max_epochs=1)
    shutil.copytree(tmp_path / "a", tmp_path / "b", symlinks=True)
    with pytest.raises(
        ConfigurationError, match=r"b/version_0 is a copy of that directory and goes on as a run of its"
    ):
        train(tmp_path / "b", RemoteCopy(url), max_epochs=2)
    train(tmp_path / "b", RemoteCopy(f"{url}-b"), max_epochs=2)
    train(tmp_path / "a", RemoteCopy(url), max_epochs=2)
    with pytest.raises(ConfigurationError, match="hold different runs"):
        train(tmp_path / "b", RemoteCopy(url), max_epochs=3)
    assert steps_there(url) == [4, 8] and steps_there(f"{url}-b") == [4, 8]
    assert train(tmp_path / "c", RemoteCopy(f"{url}-b"), max_epochs=3).global_step == 12
    assert owner(tmp_path / "c") == owner(tmp_path / "b") and owner(tmp_path / "c").ancestors == (
        owner(tmp_path / "a").id,
    )


def strip_ids(url: str, run_dir: Path) -> None:
    """As a version before there were ids would have left it, here and there."""
    for key, data in below(url).items():
        if key.endswith("/" + MANIFEST):
            manifest = {name: value for name, value in unseal(data, "").items() if name not in ("run", "sha256")}
            place = key.partition("/")[0]
            new = seal(manifest)
            name = f"{place[:-16]}{json.loads(new)['sha256'][:16]}"
            for old, content in below(url).items():
                if old.startswith(f"{place}/"):
                    overwrite(url, old.replace(place, name), new if old == key else content)
                    remove(url, old)
            local = run_dir / "checkpoints" / place.partition(".")[0]
            if local.is_dir():
                (local / MANIFEST).write_bytes(new)
            OwnCopies(run_dir / "checkpoints").add(place.partition(".")[0], name[-16:])
    overwrite(url, NAMES_FILE, seal({"format": 1, "names": {"latest": [sorted(below(url))[-1].partition("/")[0]]}}))
    remove(url, NAMES_COPY)
    record = json.loads((run_dir / "run.json").read_text())
    (run_dir / "run.json").write_text(json.dumps({k: v for k, v in record.items() if k not in ("id", "branch")}))


def test_a_run_without_an_id_goes_on_here_and_elsewhere_and_has_one_from_then_on(tmp_path: Path, url: str) -> None:
    expected = whole_state(train(tmp_path / "whole", None, max_epochs=3))
    train(tmp_path / "here", RemoteCopy(url), max_epochs=1)
    strip_ids(url, tmp_path / "here/version_0")
    assert owner(tmp_path / "here") is None and Remote(url).record().owner is None
    train(tmp_path / "there", RemoteCopy(url), max_epochs=2)
    named = Remote(url).record().owner
    assert named is not None and owner(tmp_path / "there") == named
    again = train(tmp_path / "here", RemoteCopy(url), max_epochs=3)
    assert owner(tmp_path / "here") == named
    assert differing(whole_state(again), expected) == []


def test_a_run_without_an_id_is_refused_where_nothing_is_known(tmp_path: Path, url: str) -> None:
    train(tmp_path / "one", RemoteCopy(url), max_epochs=1)
    strip_ids(url, tmp_path / "one/version_0")
    train(tmp_path / "other", None, max_epochs=1)
    with pytest.raises(
        ConfigurationError, match="a run without an id, up to step-000000004, none of whose checkpoints"
    ):
        train(tmp_path / "other", RemoteCopy(url), max_epochs=2)


# -- branches ----------------------------------------------------------------------------------------------------------


def test_a_branch_has_a_name_and_last_says_which_it_took(
    tmp_path: Path, url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(root: Path, ckpt_path: Any = "last", **until: int) -> Trainer:
        done = trainer(root, [ModelCheckpoint(save_top_k=-1), RemoteCopy(url)], **{"max_epochs": None, **until})
        done.fit(net(), batches(), ckpt_path=ckpt_path)
        return done

    run(tmp_path / "first", max_epochs=3)
    run(tmp_path / "first", tmp_path / "first/version_0/checkpoints/step-000000004", max_steps=6)
    branch = owner(tmp_path / "first").branch
    assert branch.startswith("from-4-")
    ends = {name: one.entry_name for name, one in Remote(url).record().branches.items()}
    assert ends == {"main": "step-000000012", branch: "step-000000006"}
    capsys.readouterr()
    again = run(tmp_path / "second", max_steps=7)
    out = capsys.readouterr().out
    assert again.global_step == 7
    assert f"branch {branch})" in out and f"other branches at {url}: main up to step-000000012" in out
    assert owner(tmp_path / "second").branch == branch
    assert Remote(url).find("main").entry_name == "step-000000012"


def test_going_back_on_a_machine_that_does_not_hold_the_newest_is_the_newest_afterwards(
    tmp_path: Path, url: str
) -> None:
    """The number of its commit is above all that the run has elsewhere."""
    train(tmp_path / "here", RemoteCopy(url), max_epochs=1)
    train(tmp_path / "there", RemoteCopy(url), max_epochs=4)
    old = tmp_path / "here/version_0/checkpoints/step-000000004"
    train(tmp_path / "here", RemoteCopy(url), ckpt_path=old, max_steps=6)
    third = train(tmp_path / "third", RemoteCopy(url), max_steps=7)
    assert third.ckpt_path is not None and third.ckpt_path.name == "step-000000006"


# -- names -------------------------------------------------------------------------------------------------------------


class Tag(Callback):
    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        trainer.save_checkpoint(f"mine-{trainer.current_epoch}")


@pytest.mark.parametrize("what", ["flipped", "gone", "both gone"])
def test_damaged_names_are_made_anew_without_losing_anybody_s(
    tmp_path: Path, url: str, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path / "first", RemoteCopy(url), Tag(), max_epochs=2)
    names = Remote(url).names()
    assert set(names) == {"latest", "mine-0", "mine-1"}
    if what == "flipped":
        overwrite(url, NAMES_FILE, below(url)[NAMES_FILE].replace(b"mine", b"mein"))
    else:
        remove(url, NAMES_FILE)
    if what == "both gone":
        remove(url, NAMES_COPY)
    assert Remote(url).names() == names
    train(tmp_path / "second", RemoteCopy(url, keep_last_n=1), max_epochs=3)
    after = Remote(url).names()
    assert {name: after[name] for name in ("mine-0", "mine-1")} == {name: names[name] for name in ("mine-0", "mine-1")}
    assert after["latest"][0].entry_name == "step-000000012"
    assert below(url)[NAMES_FILE] == below(url)[NAMES_COPY]
    assert "names.json of" in capsys.readouterr().out
    assert set(steps_there(url)) >= {4, 8, 12}


# -- two at once -------------------------------------------------------------------------------------------------------


class Meanwhile(Callback):
    """At a step of this run, another begins on the same run's URL."""

    def __init__(self, act: Any) -> None:
        self.act = act

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        if trainer.global_step == 6:
            self.act()


def test_the_second_of_two_notices_and_training_goes_on(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second is the same run on another machine, so only the lease can tell."""
    monkeypatch.setattr("paddlelite_trainer.checkpoint.remote.lease.LEASE_SECONDS", 0.6)
    train(tmp_path / "first", RemoteCopy(url), max_epochs=1)
    told: list[str] = []

    def second() -> None:
        copy = RemoteCopy(url)
        run = train(tmp_path / "second", copy, max_steps=8)
        told.append(capsys.readouterr().out)
        assert run.global_step == 8 and copy.not_copied == ["step-000000008"]

    first = train(tmp_path / "first", RemoteCopy(url), Meanwhile(second), max_epochs=3)
    assert "since somebody else copies there: process " in told[0] and "Two at one URL" in told[0]
    assert first.global_step == 12 and steps_there(url)[-1] == 12
    assert LEASE_FILE not in below(url)


def test_a_lease_that_a_crash_on_another_machine_has_left_is_waited_out(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path / "first", RemoteCopy(url), max_epochs=1)
    lease = {"format": 1, "writer": "f" * 16, "count": 7, "seconds": 0.3, "process": 1, "host": "gone\x1b[2J"}
    lease |= {"machine": "another", "started": "1", "at": "2031-01-01T00:00:00+00:00"}  # and a clock years ahead
    overwrite(url, LEASE_FILE, seal(lease))
    train(tmp_path / "second", RemoteCopy(url), max_epochs=2)
    out = capsys.readouterr().out
    assert f"Perhaps somebody else copies to {url}: process 1 on gone[2J" in out
    assert f"Nobody else copies to {url}: this run does now." in out
    assert steps_there(url) == [4, 8] and LEASE_FILE not in below(url)


def test_two_that_begin_in_the_same_moment_are_told_apart_by_the_lease(url: str) -> None:
    """Each reads that nobody has it, and each takes it: whoever wrote last has it, the other finds out."""
    from paddlelite_trainer.checkpoint.remote.lease import Lease

    one, other = (Lease(Remote(url).objects, None, lambda: True) for _ in range(2))
    both_have_read = threading.Barrier(2)
    for lease in (one, other):
        read = lease._read
        lease._read = lambda read=read: (read(), both_have_read.wait(30))[0]  # type: ignore[method-assign]
    threads = [threading.Thread(target=lease.claim) for lease in (one, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for lease in (one, other):
        del lease._read
    assert one.is_held and other.is_held
    claims = {one.claim(), other.claim()}
    assert claims == {"held", "busy"}


# -- what this machine lacks -------------------------------------------------------------------------------------------


class Scored(Callback):
    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        trainer.record("score", [0.5, 0.9, 0.6, 0.7][trainer.current_epoch])


def scored(root: Path, copy: RemoteCopy, epochs: int) -> Trainer:
    return trainer(root, [Scored(), ModelCheckpoint(monitor="score", mode="max"), copy], max_epochs=epochs)


@pytest.mark.parametrize(("asked", "step"), [("best", 8), ("last", 12), ("best_score", 8)])
def test_an_evaluation_takes_from_the_remote_what_this_machine_has_not(
    tmp_path: Path, url: str, asked: str, step: int, capsys: pytest.CaptureFixture[str]
) -> None:
    first = scored(tmp_path / "first", RemoteCopy(url), 3)
    first.fit(net(), batches(), batches(2, 5))
    expected = first.validate(net(), batches(2, 5), ckpt_path=asked, verbose=False)
    objects = below(url)
    for again in (False, True):
        capsys.readouterr()
        copy = RemoteCopy(url)
        calls = hook(copy.remote, lambda number, name, args, call: call())
        found = scored(tmp_path / "second", copy, 3).validate(net(), batches(2, 5), ckpt_path=asked, verbose=False)
        assert found == expected
        assert f"step-{step:09d}, brought from {url}" in capsys.readouterr().out
        assert [name for name, path in calls.calls if path.endswith("model.pdparams")] == (
            [] if again else ["info", "cat_file"]
        )
    assert [path.name for path in (tmp_path / "second").iterdir()] == ["fetched"], "looking begins no run"
    assert below(url) == objects


def test_what_neither_has_is_an_error_that_names_both(tmp_path: Path, url: str) -> None:
    scored(tmp_path / "first", RemoteCopy(url), 1).fit(net(), batches())
    with pytest.raises(CheckpointNotFoundError, match="neither a path nor a tag"):
        scored(tmp_path / "second", RemoteCopy(url), 1).validate(net(), batches(2, 5), ckpt_path="bset")
    with pytest.raises(
        CheckpointNotFoundError, match=f"'bset' is neither a path nor a tag.* Nor is there any at {url}"
    ):
        scored(tmp_path / "second", RemoteCopy(url), 1).fit(net(), batches(), ckpt_path="bset")
    assert not (tmp_path / "second").exists()


def test_a_fit_goes_back_to_the_best_that_only_the_remote_has(tmp_path: Path, url: str) -> None:
    scored(tmp_path / "first", RemoteCopy(url), 3).fit(net(), batches())
    second = scored(tmp_path / "second", RemoteCopy(url), 4)
    second.fit(net(), batches(), ckpt_path="best")
    assert second.ckpt_path == tmp_path / "second/version_0/checkpoints/step-000000008" and second.global_step == 16
    assert owner(tmp_path / "second").branch.startswith("from-8-")
    assert owner(tmp_path / "second").is_of(owner(tmp_path / "first"))
    assert Remote(url).checkpoints()[0].entry_name == "step-000000016"


# -- logs --------------------------------------------------------------------------------------------------------------


def logged(root: Path, url: str | None, **until: int) -> Trainer:
    from paddlelite_trainer import CSVLogger, TensorBoardLogger

    copy = [RemoteCopy(url, logs=True)] if url else []
    settings = {"logger": [CSVLogger(), TensorBoardLogger()], "log_every_n_steps": 1, "max_epochs": None, **until}
    run = trainer(root, [ModelCheckpoint(every_n_train_steps=3), *copy], **settings)
    run.fit(net(), batches(), ckpt_path="last")
    return run


def scalars(root: Path) -> list[Any]:
    sys.path.insert(0, str(Path(__file__).parents[1] / "house"))
    from fingerprint import _scalars

    return sorted(_scalars(root))


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_logs_that_are_copied_leave_no_gap_in_a_new_machine_s_curves(tmp_path: Path, kind: str) -> None:
    url = memory_url() if kind == "memory" else f"file://{tmp_path}/remote"
    logged(tmp_path / "whole", None, max_steps=10)
    logged(tmp_path / "first", url, max_steps=4)
    logged(tmp_path / "second", url, max_steps=7)
    third = logged(tmp_path / "third", url, max_steps=10)
    assert third.run_dir is not None
    whole, here = tmp_path / "whole/version_0", third.run_dir
    steps = [line.split(",")[:2] for line in (here / "metrics.csv").read_text().splitlines()]
    assert steps == [line.split(",")[:2] for line in (whole / "metrics.csv").read_text().splitlines()]
    assert [one[:2] for one in scalars(here)] == [one[:2] for one in scalars(whole)]
    told = (here / "train.log").read_text()
    assert "max_steps=4 reached" in told and "max_steps=7 reached" in told, "what the other machines said"


def test_logs_are_put_in_blocks_and_only_what_has_changed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from paddlelite_trainer.checkpoint.remote import logs

    monkeypatch.setattr(logs, "BLOCK_BYTES", 10)
    remote, run = Remote(memory_url()), tmp_path / "run"
    (run / "deep").mkdir(parents=True)
    (run / "checkpoints").mkdir()
    (run / "checkpoints/model").write_text("no log")
    for name in ("run.json", "latest.pdparams", ".lock"):
        (run / name).write_text("no log")
    (run / "link").symlink_to("run.json")
    (run / "deep/metrics.csv").write_bytes(b"0123456789" * 3 + b"0")
    copies = logs.LogCopies(remote.objects, run)
    calls = hook(remote, lambda number, name, args, call: call())
    copies._objects = remote.objects
    copies.upload()
    assert len([name for name, _ in calls.calls if name == "pipe_file"]) == 5
    before = len(calls.calls)
    copies.upload()
    assert len(calls.calls) == before
    with (run / "deep/metrics.csv").open("ab") as file:
        file.write(b"12")
    copies.upload()
    assert [path.rpartition("/")[2] for name, path in calls.calls[before:] if name == "pipe_file"] == [
        "000003",
        "logs.json",
    ]
    (run / "deep/metrics.csv").write_bytes(b"0123456789a")  # cut, and gone on otherwise
    copies.upload()
    (tmp_path / "there").mkdir()
    assert logs.bring_logs(remote.objects, tmp_path / "there") == []
    found = [path for path in (tmp_path / "there").rglob("*") if path.is_file()]
    assert [path.name for path in found] == ["metrics.csv"] and found[0].read_bytes() == b"0123456789a"


@pytest.mark.parametrize(
    "name", ["../x", "/x", "a/../../x", ".bashrc", "checkpoints/x", "run.json", "a\\x", "best.pdparams", ""]
)
def test_a_list_of_logs_that_leads_elsewhere_is_not_followed(tmp_path: Path, url: str, name: str) -> None:
    from paddlelite_trainer.checkpoint.remote.logs import bring_logs

    overwrite(url, "logs.json", seal({"format": 1, "files": {name: {"size": 0, "blocks": []}}}))
    (tmp_path / "run").mkdir()
    assert bring_logs(Remote(url).objects, tmp_path / "run") == []
    assert list(tmp_path.rglob("*")) == [tmp_path / "run"]


def test_logs_are_there_before_the_checkpoint_that_knows_how_far_they_had_come(tmp_path: Path, url: str) -> None:
    copy = RemoteCopy(url, logs=True)
    calls = hook(copy.remote, lambda number, name, args, call: call())
    train(tmp_path, copy, max_epochs=1)
    written = [path.rpartition("/")[2] for name, path in calls.calls if name == "pipe_file"]
    assert written.index("logs.json") < written.index(MANIFEST)
