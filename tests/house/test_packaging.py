"""The package as users get it: wheel, source archive, editable install, bare checkout, and without Paddle."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = (
    "setup.py",
    "setup.cfg",
    "pyproject.toml",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
    "conftest.py",
)
FOLDERS = ("paddlelite_trainer", "callbacks", "docs", "examples", "tests", ".ci")

pytest.importorskip("setuptools", minversion="70.1", reason="needs setuptools >= 70.1, as the test extra installs")


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources, in which building leaves its traces."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in SOURCES:
        shutil.copy(ROOT / name, copy / name)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "*.so", ".*_cache"))
    return copy


@pytest.fixture(scope="module")
def wheel(checkout: Path) -> Path:
    return _build("wheel", checkout)


@pytest.fixture(scope="module")
def editable(checkout: Path) -> Path:
    return _build("editable", checkout)


@pytest.fixture(scope="module")
def source_archive(checkout: Path) -> Path:
    return _build("sdist", checkout)


def test_the_wheel_holds_the_package_with_its_callbacks_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    packaged = {name for name in names if ".dist-info/" not in name}
    expected = {path.relative_to(ROOT).as_posix() for path in (ROOT / "paddlelite_trainer").rglob("*.py")}
    expected |= {f"paddlelite_trainer/callbacks/{path.name}" for path in (ROOT / "callbacks").glob("*.py")}
    expected |= {f"paddlelite_trainer/cli/report/page.{kind}" for kind in ("html", "css", "js")}
    assert packaged == expected | {"paddlelite_trainer/py.typed"}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_stub_for_a_bare_checkout_stays_out_of_the_wheel(wheel: Path) -> None:
    # There it would hide the types of the real package beside it.
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".pyi")]


def test_the_source_archive_holds_what_it_takes_to_check_it(source_archive: Path) -> None:
    with tarfile.open(source_archive) as archive:
        inside = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert {"LICENSE", "CHANGELOG.md", "conftest.py", "setup.cfg", "pyproject.toml", ".ci/run"} <= inside
    assert {"paddlelite_trainer/callbacks.pyi", "callbacks/__init__.py", "tests/house/test_packaging.py"} <= inside


def test_a_wheel_built_from_the_source_archive_is_the_same(wheel: Path, source_archive: Path, tmp_path: Path) -> None:
    with tarfile.open(source_archive) as archive:
        archive.extractall(tmp_path)
    (unpacked,) = tmp_path.iterdir()
    rebuilt = _build("wheel", unpacked)
    first, second = zipfile.ZipFile(wheel), zipfile.ZipFile(rebuilt)
    assert {name: first.getinfo(name).CRC for name in first.namelist()} == {
        name: second.getinfo(name).CRC for name in second.namelist()
    }


def test_an_installed_wheel_imports_callbacks_under_the_package(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    told = _python(
        "import paddlelite_trainer.callbacks as c, paddlelite_trainer as p; print(c.__file__); "
        "print(p.Callback.__module__)",
        PYTHONPATH=str(tmp_path / "site"),
        cwd=tmp_path,
    )
    assert told.split() == [
        str(tmp_path / "site/paddlelite_trainer/callbacks/__init__.py"),
        "paddlelite_trainer.callback",
    ]


def test_an_editable_install_imports_callbacks_from_the_checkout(
    checkout: Path, editable: Path, tmp_path: Path
) -> None:
    zipfile.ZipFile(editable).extractall(tmp_path / "site")
    told = _python(
        # First on the path: an editable install of this environment has a finder of the same name.
        f"import site, sys; sys.path.insert(0, {str(tmp_path / 'site')!r}); "
        f"site.addsitedir({str(tmp_path / 'site')!r})\n"
        "import paddlelite_trainer.callbacks, paddlelite_trainer.checkpoint as k\n"
        "print(paddlelite_trainer.callbacks.__file__, k.__file__)",
        cwd=tmp_path,
        without_site=True,
    )
    assert told.split() == [
        str(checkout / "callbacks/__init__.py"),
        str(checkout / "paddlelite_trainer/checkpoint/__init__.py"),
    ]


@pytest.fixture(scope="module")
def environment(editable: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh virtual environment with an editable install of the checkout, and the folder of its packages."""
    root = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(root)], check=True)
    (packages,) = root.glob("lib/python3*/site-packages")
    zipfile.ZipFile(editable).extractall(packages)
    return packages


def test_an_editable_install_is_a_path_that_type_checkers_follow(checkout: Path, environment: Path) -> None:
    paths = [path.read_text().splitlines() for path in environment.glob("*.pth")]
    assert paths == [[str(checkout)]]
    assert all((checkout / typed).is_file() for typed in ("paddlelite_trainer/py.typed", "callbacks/py.typed"))


def test_mypy_sees_the_types_of_an_editable_install(environment: Path, tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="needs mypy, as the lint extra installs")
    (tmp_path / "train.py").write_text(
        "from paddlelite_trainer import Trainer\n"
        "from paddlelite_trainer.callbacks import ModelCheckpoint\n"
        "reveal_type(Trainer(max_epochs=1).global_step)\n"
        "reveal_type(ModelCheckpoint().best_model_path)\n"
    )
    python = environment.parents[2] / "bin/python"
    ran = subprocess.run(
        [sys.executable, "-m", "mypy", "--python-executable", str(python), "--cache-dir", ".cache", "train.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert re.findall(r"train.py:\d+: (.*)", ran.stdout) == [
        'note: Revealed type is "int"',
        'note: Revealed type is "str"',
    ]


TRAIN = """
import paddle
import paddlelite_trainer.callbacks, paddlelite_trainer.doctor, paddlelite_trainer.export
from paddlelite_trainer import Module, Trainer

class Line(Module):
    def __init__(self):
        super().__init__()
        self.net = paddle.nn.Linear(1, 1)
    def training_step(self, batch, batch_idx):
        loss = (self.net(batch) - 2 * batch).square().mean()
        self.log("train_loss", loss)
        return loss
    def configure_optimizers(self):
        return paddle.optimizer.SGD(0.1, parameters=self.parameters())

trainer = Trainer(max_epochs=2, default_root_dir="runs")
trainer.fit(Line(), [paddle.ones([2, 1])] * 3, ckpt_path="last")
print("file", paddlelite_trainer.callbacks.__file__)
print("step", trainer.global_step)
"""


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin/ of a fresh virtual environment into which pip has installed the wheel; libraries are those from here."""
    pytest.importorskip("pip", minversion="22.3", reason="needs pip >= 22.3, which installs into another environment")
    root = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(root)], check=True)
    (packages,) = root.glob("lib/python3*/site-packages")
    libraries = [entry for entry in sys.path if entry.endswith("site-packages")]
    (packages / "libraries.pth").write_text("\n".join(libraries) + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(root / "bin/python"), "--disable-pip-version-check", "install"]
    how = ["-q", "--no-deps", "--no-index", "--ignore-installed", str(wheel)]
    subprocess.run([*pip, *how], check=True, timeout=120)
    return root / "bin"


def test_an_installed_wheel_trains_and_its_command_line_reports(installed: Path, tmp_path: Path) -> None:
    told = _run([str(installed / "python"), "-c", TRAIN], tmp_path)
    assert re.search(rf"^file {re.escape(str(installed.parent))}/lib/.*callbacks/__init__.py$", told, re.MULTILINE)
    assert "step 6\n" in told
    command = str(installed / "paddlelite")
    assert {"ckpt", "report", "doctor"} <= set(re.findall(r"\w+", _run([command, "--help"], tmp_path)))
    assert re.search(r"^ +6 +2 .* latest", _run([command, "ckpt", "ls", "runs/version_0"], tmp_path), re.MULTILINE)
    pytest.importorskip("plotly", reason="needs plotly, as the report extra installs")
    pytest.importorskip("jinja2", reason="needs jinja2, as the report extra installs")
    _run([command, "report", "runs/version_0", "-o", "report.html"], tmp_path)
    assert "train_loss" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_mypy_finds_a_misspelt_argument_through_an_installed_wheel(installed: Path, tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="needs mypy, as the lint extra installs")
    (tmp_path / "train.py").write_text(
        "from paddlelite_trainer import Trainer\n"
        "from paddlelite_trainer.callbacks import EarlyStopping\n"
        "good = Trainer(max_epochs=1, callbacks=[EarlyStopping(monitor='val_acc', mode='max')])\n"
        "misspelt = Trainer(max_epoch=1)\n"
        "mistaken = Trainer(max_epochs='1')\n"
        "EarlyStopping(monitor='val_acc', mode='maximum')\n"
    )
    # Libraries' own types are beside the point and take most of a minute.
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\nfollow_imports = skip\n[mypy-paddlelite_trainer.*]\nfollow_imports = silent\n"
    )
    python = str(installed / "python")
    command = [sys.executable, "-m", "mypy", "--python-executable", python, "--cache-dir", ".cache", "train.py"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    found = re.findall(r"^train.py:(\d+): error: .*\[([\w-]+)\]$", ran.stdout, re.MULTILINE)
    assert found == [("4", "call-arg"), ("5", "arg-type"), ("6", "arg-type")], ran.stdout + ran.stderr
    assert 'Unexpected keyword argument "max_epoch" for "Trainer"; did you mean "max_epochs"?' in ran.stdout


def test_a_bare_checkout_finds_callbacks_through_its_conftest(checkout: Path, tmp_path: Path) -> None:
    told = _python(
        f"import sys; sys.path.insert(0, {str(checkout)!r})\n"
        "import conftest, paddlelite_trainer.callbacks as c; print(c.__file__)",
        cwd=tmp_path,
        without_site=True,
    )
    assert told.split() == [str(checkout / "callbacks/__init__.py")]


def test_callbacks_are_refused_under_their_bare_name() -> None:
    told = _python("import callbacks", cwd=ROOT, fails=True)
    assert "import these as paddlelite_trainer.callbacks" in told


def test_without_paddle_the_first_name_says_what_to_install(tmp_path: Path) -> None:
    told = _python(
        "import importlib.util as u, sys; found = u.find_spec\n"
        "u.find_spec = lambda name, *more: None if name == 'paddle' else found(name, *more)\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from paddlelite_trainer import Trainer",
        cwd=tmp_path,
        fails=True,
    )
    assert "ImportError: paddlelite_trainer needs PaddlePaddle, which is not installed." in told
    assert "pip install 'paddlelite_trainer[cpu]'" in told


def test_importing_the_package_and_its_checkpoints_imports_no_paddle(tmp_path: Path) -> None:
    told = _python(
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "import paddlelite_trainer, paddlelite_trainer.checkpoint\n"
        "print(sorted(name for name in sys.modules if name.split('.')[0] in ('paddle', 'torch', "
        "'matplotlib', 'tensorboardX')))",
        cwd=tmp_path,
    )
    assert told.strip() == "[]"


def test_the_version_is_written_once(wheel: Path) -> None:
    version = _python("import paddlelite_trainer as p; print(p.__version__)", cwd=ROOT).strip()
    assert wheel.name.startswith(f"paddlelite_trainer-{version}-")
    released = re.findall(r"^## (\d\S*?),", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert released[0] == version


def test_the_changelog_tells_of_a_version_by_subject_and_of_each_thing_once() -> None:
    newest = re.split(r"^## ", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)[1]
    before_the_first_subject, *subjects = re.split(r"^### ", newest, flags=re.MULTILINE)
    assert "\n- " not in before_the_first_subject, "put it under the heading of its subject"
    names = [subject.splitlines()[0] for subject in subjects]
    entries = re.findall(r"^- .*", newest, re.MULTILINE)
    assert len(names) == len(set(names)) and len(entries) == len(set(entries))
    told_as_it_was = [entry for entry in entries if re.search(r"\bno longer\b|; it was\b|\bBefore,", entry)]
    assert told_as_it_was == [], "tell what is so, for somebody who sees it for the first time"


def _build(kind: str, source: Path) -> Path:
    """Build as pip does, but with the setuptools that is here, so that no network is needed."""
    output = source.parent / f"{source.name}-{kind}"
    output.mkdir()
    told = _python(f"from setuptools import build_meta; print(build_meta.build_{kind}({str(output)!r}))", cwd=source)
    return output / told.split()[-1]


def _run(command: list[str], cwd: Path) -> str:
    """What it prints, in an environment that no PYTHONPATH leads astray."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ran = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def _python(code: str, *, cwd: Path, fails: bool = False, without_site: bool = False, **variables: str) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if without_site:
        # An editable install of this very checkout must not be what is found; the libraries must be. Paddle 2.6 asks
        # site for the user's folder when it is imported.
        libraries = [entry for entry in sys.path if entry.endswith("site-packages")]
        code = f"import site, sys; site.getusersitepackages(); sys.path += {libraries!r}\n{code}"
    ran = subprocess.run(
        [sys.executable, *(["-S"] if without_site else []), "-c", code],
        cwd=cwd,
        env=environment | variables,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (ran.returncode != 0) == fails, ran.stdout + ran.stderr
    return ran.stderr if fails else ran.stdout
