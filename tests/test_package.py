"""What is published: the wheel works outside of the checkout and is no larger than it should be."""

import os
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
pytest.importorskip("build", reason="the package `build` is not installed")
LARGEST_WHEEL = 20_000_000


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the sdist, as an index would have it."""
    out = tmp_path_factory.mktemp("dist")
    run = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    built = subprocess.run(run, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout[-2000:] + built.stderr[-2000:]
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment that has the wheel, and for the rest what this one has."""
    folder = tmp_path_factory.mktemp("fresh")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    fresh = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    with zipfile.ZipFile(wheel) as archive:  # what installing a wheel of pure Python is, but for its script
        archive.extractall(fresh)
    (fresh / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin" / "python"


def ask(python: Path, folder: Path, *arguments: str) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [str(python), *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_holds_weights_and_templates_and_is_not_too_large(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for needed in (
        "granvit/assets/nano-encoder/model.safetensors",
        "granvit/assets/templates/report.html.j2",
        "granvit/py.typed",
    ):
        assert needed in names
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "docs/"))]
    assert wheel.stat().st_size <= LARGEST_WHEEL


def test_it_runs_outside_of_the_checkout(python: Path, tmp_path: Path) -> None:
    where = ask(python, tmp_path, "-c", "import granvit; print(granvit.__file__)").strip()
    assert Path(where).is_relative_to(python.parents[1])
    assert "--corpus" in ask(python, tmp_path, "-m", "granvit", "demo", "--help")
    ask(python, tmp_path, "-m", "granvit", "assemble", "nano", "--out", "model")
    Image.effect_noise((200, 100), 90).convert("RGB").save(tmp_path / "photo.png")
    reported = ask(
        python, tmp_path, "-m", "granvit", "describe", "photo.png", "--box", "10,10,90,90", "--model", "model"
    )
    assert reported.startswith("10,10,90,90\t")


def test_importing_it_is_quick_and_brings_no_torch(python: Path, tmp_path: Path) -> None:
    reported = ask(python, tmp_path, "-c", "import sys, granvit; print('torch' in sys.modules)")
    assert reported.strip() == "False"


def test_every_extra_is_named_in_the_docs() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    pages = "".join(
        p.read_text() for p in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    )
    for extra in extras:
        assert f"[{extra}]" in pages or f",{extra}" in pages, extra


def test_one_version_is_reported_everywhere() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()
    assert f"version: {version}" in (ROOT / "CITATION.cff").read_text()
