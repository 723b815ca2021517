"""Base images for tests, made once by examples/base/make_base.py and kept between sessions."""

import hashlib
import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from examples.base import make_base as maker
from tests.support.session import CACHE, locked, missing, need


@dataclass(frozen=True)
class BaseLayout:
    """An image named `base` in the OCI image layout `folder`, which nobody may change."""

    folder: Path

    @property
    def reference(self) -> str:
        return f"oci:{self.folder}:base"

    @property
    def digest(self) -> str:
        index = json.loads((self.folder / "index.json").read_text())
        return str(index["manifests"][0]["digest"])

    def push(self, target: str, *, username: str = "", password: str = "") -> str:
        """Copy the image to `target` (`127.0.0.1:PORT/repository:tag`) with skopeo; gives `repository@digest`."""
        need("skopeo")
        command = ["skopeo", "copy", "--quiet", "--dest-tls-verify=false", self.reference, f"docker://{target}"]
        command += ["--dest-creds", f"{username}:{password}"] if username else []
        subprocess.run(command, check=True, capture_output=True, text=True)
        return f"{target.rpartition(':')[0]}@{self.digest}"


def base_image(packages: tuple[str, ...] = maker.PYTHON) -> BaseLayout:
    """The base image of `packages`, from the cache if this recipe made it before."""
    try:
        recipe = [maker.sources(), packages, Path(maker.__file__).read_text()]
    except maker.CannotMakeBase as error:
        missing(str(error))
    key = hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:16]
    folder = CACHE / f"base-{key}"
    with locked(CACHE / f"base-{key}.lock"):
        if not folder.exists():
            if os.geteuid() != 0:
                need("mmdebstrap")
            try:
                maker.make_base(folder, packages=packages)
            except maker.CannotMakeBase as error:
                missing(str(error))
    return BaseLayout(folder)
