"""`paddlelite`: errors and the exit codes that a script goes by, help, and tables on any terminal."""

import io
import os
import pty
import re
import subprocess
import sys

import numpy as np
import pytest
from cli_support import ROOT, save

from paddlelite_trainer import __version__
from paddlelite_trainer.checkpoint import CheckpointStore
from paddlelite_trainer.cli import NOT_FOUND, OK, PROBLEMS, USAGE, main
from paddlelite_trainer.reporting.terminal import age, size


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
    block = "import sys; sys.modules['paddle'] = None; from paddlelite_trainer.cli import main; "
    block += "sys.exit(main(sys.argv[1:]))"
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
    environment = {**os.environ, "PYTHONUNBUFFERED": ""}
    process = command("ls", run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
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
        *[(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (99_940, "99.9 kB"), (482_000, "482 kB")],
        *[(2.5e9, "2.5 GB"), (3e13, "30.0 TB")],
    ],
)  # fmt: skip
def test_sizes_are_humane(nbytes, said):
    assert size(nbytes) == said


@pytest.mark.parametrize(
    ("seconds", "said"), [(-5, "0 s"), (89, "89 s"), (90, "2 min"), (7200, "2 h"), (200_000, "2 d"), (None, "?")]
)
def test_ages_are_humane(seconds, said):
    assert age(seconds) == said
