"""Compiles Python files for `bytecode.py`, in a process of the interpreter that the bytecode is for.

Runs as a script under any Python from 3.8 on, so it uses none of this package. Compiling executes nothing of a file.
Requests on stdin: `<III` (source's time, lengths of path and source), path, source. Answers on stdout: `<BI` (status,
length) and the .pyc file: OK, or SKIPPED without one, or NO_MEMORY.
"""

import sys

if __name__ == "__main__":
    del sys.path[0]  # this file's folder, whose modules would hide those of the standard library

import importlib.util
import marshal
import struct
from types import CodeType

REQUEST, ANSWER = struct.Struct("<III"), struct.Struct("<BI")
STRUCT_ERROR = struct.error
OK, SKIPPED, NO_MEMORY = 0, 1, 2
_HASHED = (str, bytes, int, float, complex)


def main() -> None:
    """Answer requests until stdin ends."""
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    while head := requests.read(REQUEST.size):
        mtime, path_length, length = REQUEST.unpack(head)
        path = requests.read(path_length).decode()
        status, content = compile_file(requests.read(length), path, mtime)
        answers.write(ANSWER.pack(status, len(content)) + content)
        answers.flush()


def compile_file(source: bytes, path: str, mtime: int) -> "tuple[int, bytes]":
    """The .pyc file (PEP 552, checked by time and size) of a source that will be at `path`."""
    try:
        strings: list[str] = []
        code = _steady(compile(source, path, "exec", dont_inherit=True, optimize=0), strings)
        content = marshal.dumps(code)  # while `strings` lives
    except MemoryError as error:  # a text comes with it where the source is nested too deeply for the parser
        return (SKIPPED if error.args else NO_MEMORY), b""
    except Exception:  # as with pip: templates, Python 2, files that are meant to be broken
        return SKIPPED, b""
    head = importlib.util.MAGIC_NUMBER + struct.pack("<III", 0, mtime, len(source))
    return OK, head + content


def _steady(code: CodeType, strings: "list[str]") -> CodeType:
    """`code` such that `marshal` writes the same bytes of it in every process, whatever that has compiled before.

    `strings` gets a reference of each string in it, because those of which there is but one are written otherwise.
    """
    strings += (code.co_filename, code.co_name, getattr(code, "co_qualname", ""))
    strings += code.co_names + code.co_varnames + code.co_freevars + code.co_cellvars
    constants = tuple(_steady_constant(constant, strings) for constant in code.co_consts)
    if all(new is old for new, old in zip(constants, code.co_consts)):  # noqa: B905  # older Pythons
        return code
    return code.replace(co_consts=constants)


def _steady_constant(constant: object, strings: "list[str]") -> object:
    if isinstance(constant, CodeType):
        return _steady(constant, strings)
    if isinstance(constant, str):
        strings.append(constant)
        if len(constant) == 1 and constant <= "\xff":
            sys.intern(constant)  # one object in each process, which others may or may not have interned
    elif isinstance(constant, tuple):
        for one in constant:
            _steady_constant(one, strings)
    elif isinstance(constant, frozenset):
        if sys.version_info < (3, 11) and not all(isinstance(one, _HASHED) for one in constant):
            raise ValueError("stored in the order of its hashes, and that of None is a memory address")
        ordered = sorted(constant, key=repr)
        _steady_constant(tuple(ordered), strings)
        return frozenset(ordered)  # a new one: whether equal ones are one object depends on what came before
    return constant


if __name__ == "__main__":
    main()
