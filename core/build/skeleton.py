"""The empty environment: a venv (PEP 405) at the fixed prefix, on the interpreter of the base image."""

from typing import BinaryIO

from prefect_environments.core.build import layer, recipe, tar
from prefect_environments.core.build.layer import LayerBlob
from prefect_environments.core.lock.target import Target


def write_skeleton(target: Target, out: BinaryIO) -> LayerBlob:
    """The layer with `pyvenv.cfg`, the interpreter's links and the empty `site-packages`."""
    prefix = recipe.PREFIX.strip("/")
    home = target.interpreter.rpartition("/")[0]
    settings = f"home = {home}\ninclude-system-site-packages = false\nversion = {target.python}\n"
    return layer.write_entries(
        [
            # hides what the base has at this place, perhaps another environment (image-spec, "Opaque Whiteout")
            (tar.Entry(f"{prefix}/.wh..wh..opq", 0o644), b""),
            (tar.Entry(f"{prefix}/pyvenv.cfg", 0o644), settings.encode()),
            (tar.Entry(f"{prefix}/bin/python", 0o777, tar.SYMLINK, target.interpreter), b""),
            (tar.Entry(f"{prefix}/bin/python3", 0o777, tar.SYMLINK, "python"), b""),
            (tar.Entry(f"{prefix}/bin/python{target.python_minor}", 0o777, tar.SYMLINK, "python"), b""),
            (tar.Entry(f"{prefix}/lib64", 0o777, tar.SYMLINK, "lib"), b""),
            (tar.Entry(recipe.site_packages(target), 0o755, tar.DIRECTORY), b""),
        ],
        out,
    )
