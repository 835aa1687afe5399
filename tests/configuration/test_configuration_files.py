"""`paddlelite fit --config`: from an empty directory, restarts, what a run keeps, and sentences about what is wrong."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from paddlelite_trainer import callbacks
from paddlelite_trainer.checkpoint import open_checkpoint
from paddlelite_trainer.cli import main
from paddlelite_trainer.configuration.merging import Merged, split
from paddlelite_trainer.errors import ConfigurationError

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/configuration-files.md").read_text(encoding="utf-8")
PYTHON = re.search(r"^```python\n(.*?)^```$", PAGE, re.M | re.S)[1]
YAML = re.search(r"^```yaml\n(.*?)^```$", PAGE, re.M | re.S)[1]
COMMANDS, RESUMES = (block.splitlines() for block in re.findall(r"^```sh\n(.*?)^```$", PAGE, re.M | re.S))
QUIET = [
    "--trainer.enable_progress_bar",
    "false",
    "--trainer.enable_model_summary",
    "false",
    "--trainer.logger",
    "false",
]
SHORT = [*QUIET, "--trainer.max_epochs", "1"]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The page's two files in an empty directory, which is the present one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    (tmp_path / "digits.py").write_text(PYTHON)
    (tmp_path / "run.yaml").write_text(YAML)
    sys.modules.pop("digits", None)
    yield tmp_path
    sys.modules.pop("digits", None)


@pytest.fixture
def call(project, capfd):
    """Run one command line in this process: (exit code, stdout, stderr)."""

    def call(*arguments):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as leaves:
            code = leaves.code
        out, err = capfd.readouterr()
        return code, out, err

    return call


def config_of(run):
    return yaml.safe_load((run / "config.yaml").read_text())


def weights_of(run):
    return open_checkpoint(run / "latest").tensors("model.pdparams")


# -- the page ----------------------------------------------------------------------------------------------------------


def test_the_page_s_commands_do_what_it_says(call, project):
    said = []
    for line in COMMANDS:
        code, out, err = call(*shlex.split(line)[1:])
        assert code == 0, (line, err)
        said.append(out)
    runs = sorted(path.name for path in (project / "runs").iterdir())
    assert runs == ["version_0", "version_1"]
    assert "Finished 3/3 epochs" in said[0]
    assert "going on with" in said[1] and "Finished 4/4 epochs" in said[1]
    assert "weights: " in said[2] and "version_0/best" in said[2] and "val_acc" in said[2]
    assert "val_acc" in said[3]
    assert np.load("predictions.npz")["predictions"].shape == (64, 2)
    assert "a run of its own" in said[5] and "module.init_args.hidden: 32, now 48" in said[5]
    printed = yaml.safe_load(said[6])
    assert printed["trainer"]["max_epochs"] == 3 and printed["trainer"]["rank_timeout"] == "00:00:30:00"


def test_what_is_wrong_is_told_as_the_page_shows(call, project):
    (shown,) = re.findall(r"^```text\n(.*?)^```$", PAGE, re.M | re.S)
    told = []
    for right, wrong in (("max_epochs: 3", "max_epoch: 3"), ("digits.Classifier", "digits.Clasifier")):
        (project / "wrong.yaml").write_text(YAML.replace(right, wrong))
        told.append(call("fit", "--config", "wrong.yaml")[2])
    told.append(call("fit", "--config", "run.yaml", "--module.hidden", "wide")[2])
    assert "".join(told).replace("wrong.yaml", "run.yaml") == shown


def test_a_script_that_trains_when_it_is_imported_is_taken_for_its_classes_alone(call, project):
    trains = "Trainer(max_epochs=1, default_root_dir='other').fit(Classifier(), datamodule=None)"
    (project / "digits.py").write_text(f"{PYTHON}\nfrom paddlelite_trainer import Trainer\n{trains}\n")
    code, out, err = call("fit", "--config", "run.yaml")
    assert code == 0, err
    assert "Finished 3/3 epochs" in out and not (project / "other").exists()


def test_what_is_printed_is_a_configuration_of_the_same_run(call, project):
    call("fit", "--config", "run.yaml", *QUIET)
    _, printed, _ = call("fit", "--config", "run.yaml", *QUIET, "--print_config")
    (project / "whole.yaml").write_text(printed)
    code, out, err = call("fit", "--config", "whole.yaml")
    assert code == 0, err
    assert "Already finished 3/3 epochs" in out


def test_help_says_what_each_argument_means(call):
    code, out, _ = call("fit", "--help")
    assert code == 0
    assert "end after so many epochs in all" in " ".join(out.split())
    _, out, _ = call("fit", "--module.help", "digits.Classifier")
    assert "width of the layer between" in out
    _, out, _ = call("fit", "--trainer.callbacks.help", "paddlelite_trainer.callbacks.EarlyStopping")
    assert "evaluations without improvement" in " ".join(out.split())


@pytest.mark.parametrize("name", callbacks.__all__)
def test_every_argument_of_a_callback_is_explained(name):
    import inspect

    kind = getattr(callbacks, name)
    if "__init__" not in vars(kind):
        return
    told = f"{inspect.getdoc(kind)} {inspect.getdoc(kind.__init__)}"
    arguments = [one for one in inspect.signature(kind.__init__).parameters if one != "self"]
    assert [one for one in arguments if not re.search(rf"\b{one}\b", told)] == []


# -- restarts ----------------------------------------------------------------------------------------------------------


def test_a_run_and_its_checkpoints_keep_the_whole_configuration(call, project):
    code, _, err = call("fit", "--config", "run.yaml", "--optimizer.learning_rate", "${data.init_args.seed}", *QUIET)
    assert code == 0, err
    kept = config_of(project / "runs/version_0")
    assert kept["trainer"]["max_epochs"] == 3 and kept["trainer"]["seed"] == 7
    assert kept["trainer"]["callbacks"][1]["init_args"]["min_delta"] == 0.0
    assert kept["optimizer"]["init_args"]["learning_rate"] == 0
    in_checkpoint = open_checkpoint(project / "runs/version_0/best").state("trainer.json")["configuration"]
    assert in_checkpoint == kept


def test_a_restart_that_trains_longer_is_no_change_and_another_rate_is_told_where_the_run_goes_on_with_it(
    call, project
):
    call("fit", "--config", "run.yaml", *QUIET)
    _, out, _ = call("fit", "--config", "run.yaml", *QUIET, "--trainer.max_epochs", 4, "--trainer.log_every_n_steps", 7)
    assert "a run of its own" not in out and "has changed" not in out and "Finished 4/4" in out
    longer = ["--trainer.max_epochs", 5, "--optimizer.learning_rate", 0.5, "--ckpt_path", "last"]
    _, out, _ = call("fit", "--config", "run.yaml", *QUIET, *longer)
    assert "the configuration has changed since the run began: optimizer.init_args.learning_rate: 0.01, now 0.5" in out
    assert config_of(project / "runs/version_0")["optimizer"]["init_args"]["learning_rate"] == 0.5
    assert [path.name for path in (project / "runs").iterdir()] == ["version_0"]


def test_a_name_of_a_run_with_another_configuration_is_refused(call):
    call("fit", "--config", "run.yaml", *QUIET, "--trainer.run_name", "mine")
    code, _, err = call("fit", "--config", "run.yaml", *QUIET, "--trainer.run_name", "mine", "--module.hidden", 8)
    assert code == 2
    assert "runs/mine was begun otherwise (module.init_args.hidden: 32, now 8)" in err and "--ckpt_path last" in err
    assert err.count("\n") == 1


def test_null_begins_a_run(call, project):
    for _ in range(2):
        assert call("fit", "--config", "run.yaml", *QUIET, "--ckpt_path", "null")[0] == 0
    assert len(list((project / "runs").iterdir())) == 2


def test_an_evaluation_without_a_run_says_so(call):
    code, _, err = call("test", "--config", "run.yaml")
    assert code == 3 and "no run of this configuration has a checkpoint below runs" in err


def test_a_seed_decides_about_the_weights(call, project):
    for root in ("a", "b"):
        call("fit", "--config", "run.yaml", *QUIET, "--trainer.default_root_dir", root)
    first, second = (weights_of(project / root / "version_0") for root in ("a", "b"))
    assert all(np.array_equal(first[name], second[name]) for name in first)


# -- resume, from an empty shell ---------------------------------------------------------------------------------------

KILLED = """
    def on_train_batch_end(self, outputs, batch, batch_idx):
        import os, signal
        if os.environ.get("DIES_AT") == str(self.trainer.global_step):
            os.kill(os.getpid(), signal.SIGKILL)
"""


def started(words, where, **environment):
    return subprocess.run(
        words, cwd=where, env={"PYTHONPATH": str(ROOT), **environment}, capture_output=True, text=True, timeout=120
    )


COMMAND = [sys.executable, "-m", "paddlelite_trainer.cli"]


def test_a_killed_run_goes_on_by_its_directory_alone(project):
    (project / "digits.py").write_text(PYTHON.replace("    def test_step", f"{KILLED}\n    def test_step"))
    config = yaml.safe_load(YAML)
    config["trainer"]["max_epochs"] = 2
    config["trainer"]["callbacks"] = [{"class_path": "ModelCheckpoint", "init_args": {"every_n_train_steps": 5}}]
    (project / "run.yaml").write_text(yaml.safe_dump(config))
    fit = [*COMMAND, "fit", "--config", "run.yaml", *QUIET]
    assert started([*fit, "--trainer.default_root_dir", "whole"], project).returncode == 0
    killed = started(fit, project, DIES_AT="18")
    assert killed.returncode == -9, killed.stderr
    (project / "run.yaml").unlink()  # the run has its own
    resumed, longer = [[*COMMAND, *shlex.split(line.replace("runs", f"{project}/runs"))[1:]] for line in RESUMES]
    resumed = started(resumed, "/")
    assert resumed.returncode == 0, resumed.stderr
    assert "with the configuration that it keeps" in resumed.stdout and "killed" in resumed.stdout
    assert "step 15" in resumed.stdout
    whole, again = weights_of(project / "whole/version_0"), weights_of(project / "runs/version_0")
    assert all(np.array_equal(whole[name], again[name]) for name in whole)
    assert "Finished 5/5 epochs" in started(longer, "/").stdout


SCRIPT = """
import sys
from digits import Classifier, Data
import paddle
from paddlelite_trainer import Trainer
from paddlelite_trainer.callbacks import ModelCheckpoint
class Mine(Classifier):
    def configure_optimizers(self):
        return paddle.optimizer.SGD(0.1, parameters=self.parameters())
Trainer(max_epochs=2, seed=3, enable_progress_bar=False, enable_model_summary=False, logger=False,
        callbacks=[ModelCheckpoint(every_n_train_steps=5)], default_root_dir=sys.argv[1]).fit(Mine(), Data())
"""


def test_a_run_of_a_script_goes_on_by_the_command_that_began_it(project):
    (project / "digits.py").write_text(PYTHON.replace("    def test_step", f"{KILLED}\n    def test_step"))
    (project / "train.py").write_text(SCRIPT)
    assert started([sys.executable, "train.py", "whole"], project).returncode == 0
    assert started([sys.executable, "train.py", "runs"], project, DIES_AT="18").returncode == -9
    resumed = started([*COMMAND, "resume", str(project / "runs/version_0")], "/")
    assert resumed.returncode == 0, resumed.stderr
    assert "by the command that it was last started by" in resumed.stdout and "train.py runs" in resumed.stdout
    assert [path.name for path in (project / "runs").iterdir()] == ["version_0"]
    whole, again = weights_of(project / "whole/version_0"), weights_of(project / "runs/version_0")
    assert all(np.array_equal(whole[name], again[name]) for name in whole)


def test_what_is_no_run_and_what_runs_already_is_not_resumed(call, project):
    code, _, err = call("resume", "nowhere")
    assert code == 3 and "nowhere is no run: it has no run.json" in err
    call("fit", "--config", "run.yaml", *QUIET)
    record = project / "runs/version_0/run.json"
    record.write_text(record.read_text().replace('"finished"', '"running"'))  # and the process is this one
    code, _, err = call("resume", "runs/version_0")
    assert code == 4 and f"process {os.getpid()}" in err and "Nothing was started" in err


# -- what is wrong -----------------------------------------------------------------------------------------------------

WRONG_FILES = [
    ("  max_epochs: 3", "  max_epoch: 3", "run.yaml, line 8: trainer.max_epoch: .*Did you mean 'max_epochs'"),
    ("  max_epochs: 3", "  epochs: 3", "run.yaml, line 8: trainer.epochs: .*Here it is max_epochs"),
    ("  max_epochs: 3", "  max_epochs: many", "line 8: trainer.max_epochs must be an int .*got 'many' .str"),
    ("  max_epochs: 3", "  max_epochs: 3\n  max_epochs: 4", "line 9: trainer.max_epochs stands here again; .*line 8"),
    ("  max_epochs: 3", "  max_epochs: [3", "line 9: this is no YAML"),
    ("  max_epochs: 3", "\tmax_epochs: 3", "line 8: this is no YAML: .*a tab: indent with spaces"),
    ("digits.Classifier", "digits.Clasifier", "line 2: module.class_path: .*Did you mean 'Classifier'"),
    ("digits.Classifier", "digit.Classifier", "line 2: .*there is no module digit, neither in .*Did you mean 'digits'"),
    ("digits.Classifier", "digits.Data", "line 2: .*digits.Data is the class Data, where a Module belongs"),
    (
        "hidden: 32",
        "hiden: 32",
        "line 4: module.init_args.hiden: Classifier has no argument 'hiden'. Did you mean 'hidden'",
    ),
    ("hidden: 32", "hidden: wide", "line 4: module.init_args.hidden must be int, got 'wide' .str"),
    ("EarlyStopping", "EarlyStoping", "line 13: .*Did you mean 'EarlyStopping'"),
    ("EarlyStopping", "LearningRateMonitor", "line 13: .*It is called LRMonitor here"),
    ("patience: 5", "patience: long", "line 14: trainer.callbacks.1..init_args.patience must be int, got 'long'"),
    ("{monitor: val_acc, mode: max, patience: 5}", "{mode: max}", "line 14: .*EarlyStopping needs monitor"),
    ("AdamW", "AdamX", "line 16: .*Did you mean 'Adam"),
    (
        "learning_rate: 1e-2",
        "lr: 1e-2",
        "line 17: optimizer.init_args.lr: AdamW has no argument 'lr'. Here it is learning_rate",
    ),
    ("T_max: 100", "learning_rate: 3", "line 20: .*the rate is optimizer.init_args.learning_rate"),
    ("interval: step", "interval: steps", "line 21: lr_scheduler_config.interval must be 'epoch' or 'step'"),
    ("1e-2", "${module.init_args.lr}", "line 17: this is no YAML: .*within braces write .* in quotes"),
    ("1e-2", "'${module.init_args.lr}'", "line 17: optimizer.init_args.learning_rate: .*module.init_args.lr"),
    ("trainer:", "trainr:", "line 7: trainr: there is no such key.*Did you mean 'trainer'"),
    ("data:\n", "datamodule:\n", "line 5: datamodule: .*Here it is data"),
    ("  init_args:\n    hidden: 32", "  hidden: 32", "line 3: .*put hidden below init_args"),
    (YAML, "- a\n- b\n", "run.yaml holds a list"),
]


@pytest.mark.parametrize(("right", "wrong", "sentence"), WRONG_FILES, ids=[one[1][:30] for one in WRONG_FILES])
def test_a_wrong_file_is_one_sentence_with_its_line(call, project, right, wrong, sentence):
    assert right in YAML
    (project / "run.yaml").write_text(YAML.replace(right, wrong, 1))
    code, out, err = call("fit", "--config", "run.yaml")
    assert code == 2, out
    assert err.count("\n") == 1 and re.search(sentence, err), err
    assert not (project / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--config none.yaml", "none.yaml: there is no such file; .* has run.yaml"),
        ("--config run.yaml --module.hiden 3", "--module.hiden: .*Did you mean 'hidden'"),
        ("--config run.yaml --trainer.max_epoch 3", "--trainer.max_epoch: .*Did you mean 'max_epochs'"),
        ("--config run.yaml --module.hidden wide", "--module.hidden must be int, got 'wide'"),
        ("--config run.yaml more", "'more' belongs to no option"),
        ("--config run.yaml --trainer.seed", "--trainer.seed needs a value"),
        ("--config run.yaml --trainer.callbacks+=LRMonitor --trainer.callbacks.monitor x", "LRMonitor has no argument"),
        ("--config run.yaml --trainer.gpus 2", "--trainer.gpus: .*pass accelerator=.gpu., devices="),
        ("--trainer.max_epochs 3", "needs a module"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(call, arguments, sentence):
    code, out, err = call("fit", *arguments.split())
    assert code == 2, out
    assert err.count("\n") == 1 and re.search(sentence, err), err


def test_an_error_in_the_user_s_file_names_its_line(call, project):
    (project / "digits.py").write_text("import paddle\n\nraise ValueError('no data here')\n")
    code, _, err = call("fit", "--config", "run.yaml")
    assert code == 2 and "importing digits failed: ValueError: no data here" in err and "digits.py, line 3" in err


def test_what_a_user_s_class_raises_is_raised(call, project):
    (project / "digits.py").write_text(PYTHON.replace("self.save_hyperparameters()", "open('/nowhere')"))
    with pytest.raises(FileNotFoundError):
        call("fit", "--config", "run.yaml")


@pytest.mark.parametrize("library", ["jsonargparse", "omegaconf"])
def test_without_the_extra_one_sentence_says_what_to_install(call, monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    code, _, err = call("fit", "--config", "run.yaml")
    assert code == 2
    needs = f"`paddlelite fit` needs {library}, which is not installed: pip install 'paddlelite_trainer[config]'"
    assert err == f"paddlelite: {needs}\n"


def test_predictions_that_have_nowhere_to_go_are_refused(call):
    call("fit", "--config", "run.yaml", *QUIET)
    code, _, err = call("predict", "--config", "run.yaml", *QUIET)
    assert code == 2 and "--output predictions.npz" in err
    code, _, err = call("predict", "--config", "run.yaml", *QUIET, "--output", "x.csv")
    assert code == 2 and ".npz or .json" in err


# -- merging -----------------------------------------------------------------------------------------------------------


def merged(*options):
    found = Merged()
    for name, text in options:
        found.add_argument(name, text)
    return found.tree


def test_short_options_mean_a_class_s_arguments():
    tree = merged(("module", "a.B"), ("module.lr", "1e-3"), ("trainer.callbacks+", "X"), ("trainer.callbacks.n", "2"))
    assert tree == {
        "module": {"class_path": "a.B", "init_args": {"lr": 1e-3}},
        "trainer": {"callbacks": [{"class_path": "X", "init_args": {"n": 2}}]},
    }


def test_another_class_keeps_nothing_of_the_one_before():
    tree = merged(("optimizer", "Adam"), ("optimizer.beta1", "0.5"), ("optimizer", "SGD"))
    assert tree == {"optimizer": {"class_path": "SGD"}}


def test_a_flag_for_help_is_no_value():
    assert split(["--config=a", "--module.help", "x.Y", "--print_config"]) == (
        ["--module.help", "x.Y", "--print_config"],
        [("config", "a")],
    )


def test_a_place_in_a_list_that_is_not_there_is_an_error():
    with pytest.raises(ConfigurationError, match="there is no 3 in a list of 1"):
        merged(("trainer.callbacks+", "X"), ("trainer.callbacks.3.n", "2"))
