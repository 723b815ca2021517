"""The empty environment at the fixed prefix: a venv (PEP 405) on the base image's interpreter, or a conda prefix."""

from typing import BinaryIO

from prefect_environments.core.build import layer, recipe, tar
from prefect_environments.core.build.layer import LayerBlob
from prefect_environments.core.lock.target import Target


def write_skeleton(target: Target, out: BinaryIO, *, conda: bool = False, prefix: str = recipe.PREFIX) -> LayerBlob:
    """The layer with `pyvenv.cfg`, the interpreter's links and the empty `site-packages`.

    With `conda`, whose own packages bring all that, it has the history that makes a folder a conda environment.
    """
    root = prefix.strip("/")
    # hides what the base has at this place, perhaps another environment (image-spec, "Opaque Whiteout")
    hidden = (tar.Entry(f"{root}/.wh..wh..opq", 0o644), b"")
    history = (tar.Entry(f"{root}/conda-meta/history", 0o644), b"")
    return layer.write_entries([hidden, history] if conda else [hidden, *_venv(target, root)], out)


def _venv(target: Target, root: str) -> list[tuple[tar.Entry, bytes]]:
    home = target.interpreter.rpartition("/")[0]
    settings = f"home = {home}\ninclude-system-site-packages = false\nversion = {target.python}\n"
    return [
        (tar.Entry(f"{root}/pyvenv.cfg", 0o644), settings.encode()),
        (tar.Entry(f"{root}/bin/python", 0o777, tar.SYMLINK, target.interpreter), b""),
        (tar.Entry(f"{root}/bin/python3", 0o777, tar.SYMLINK, "python"), b""),
        (tar.Entry(f"{root}/bin/python{target.python_minor}", 0o777, tar.SYMLINK, "python"), b""),
        (tar.Entry(f"{root}/lib64", 0o777, tar.SYMLINK, "lib"), b""),
        (tar.Entry(recipe.site_packages(target, root), 0o755, tar.DIRECTORY), b""),
    ]
