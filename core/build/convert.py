"""Wheels on disk become one layer, at whatever prefix, with bytecode where a compiler is given."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from prefect_environments.core import files
from prefect_environments.core.build import gzip, recipe
from prefect_environments.core.build.layer import LayerBlob, Overlap, write_wheels
from prefect_environments.core.build.wheel import Wheel
from prefect_environments.core.lock.model import LockedPackage
from prefect_environments.core.lock.target import Target

if TYPE_CHECKING:
    from prefect_environments.core.build.bytecode import Compiler


def convert_wheels(
    given: Sequence[tuple[LockedPackage, Path]],
    target: Target,
    out: BinaryIO,
    scratch: Path,
    *,
    compiler: "Compiler | None" = None,
    prefix: str = recipe.PREFIX,
) -> tuple[LayerBlob, list[Overlap], dict[str, list[str]]]:
    """Write the layer of checked wheels; gives it, the overlaps among them, and the paths in it by package.

    Works for as long as it takes: call it in a thread. Raises `PackageError` for a wheel that is refused, `BuildError`
    where compiling fails.
    """
    with ExitStack() as stack:
        wheels = []
        for package, path in given:
            wheel = Wheel.open(path, package.filename, target, prefix)
            stack.callback(wheel.close)
            wheels.append((package.name, wheel))
        member = gzip.member
        if compiler is not None:
            from prefect_environments.core.build import bytecode, deflate  # noqa: PLC0415  # not for who only splices

            spool = bytecode.Spool(stack.enter_context(files.temporary_file(scratch)))
            for _, wheel in wheels:
                bytecode.compile_wheel(wheel, compiler, spool)
            member = deflate.member
        blob, overlaps = write_wheels(wheels, out, member)
        return blob, overlaps, {name: list(wheel.contents) for name, wheel in wheels}
