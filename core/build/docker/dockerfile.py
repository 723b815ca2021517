"""Dockerfiles as data: their text, their instructions and stages, and the images that they start from.

Follows the Dockerfile reference as BuildKit reads it; nothing is executed and no engine is asked.
"""

import csv
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from prefect_environments.core.build.docker.expansion import expand, placed_words, unquote, words
from prefect_environments.core.distribution.reference import Reference
from prefect_environments.core.errors import DefinitionError, SpecificationError
from prefect_environments.core.lock.target import Platform

LIMIT = 2**20
"""Bytes of a Dockerfile; real ones have a few thousand."""
SCRATCH = "scratch"
"""The name that stands for no image at all."""

_INSTRUCTIONS = (
    *("ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL", "MAINTAINER"),
    *("ONBUILD", "RUN", "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR"),
)
_START = re.compile(rf"\s*(?:#|(?:{'|'.join(_INSTRUCTIONS)})\s+\S)", re.IGNORECASE)
_DIRECTIVE = re.compile(r"#\s*([a-zA-Z][a-zA-Z0-9]*)\s*=\s*(.+?)\s*")
_SPACE = re.compile(r"[\t\v\f\r ]+")
_HEREDOC = re.compile(r"\d*<<(-?)([^<]+)")
_STAGE_NAME = re.compile(r"[a-z][a-z0-9_.-]*")
_VARIABLE = re.compile(r"\$.")
_DEFAULT_PLATFORM = Platform()
_BUILDER_ARGUMENTS = ("BUILDPLATFORM", "BUILDOS", "BUILDARCH", "BUILDVARIANT")
_UNKNOWABLE = "\0"
"""Stands for the value of a builder argument, which is another one on another machine."""


def is_dockerfile_text(value: str) -> bool:
    """Whether `value` is a Dockerfile's text rather than its path: it has a line break or starts with an instruction
    and its argument, or a comment."""
    return "\n" in value or "\r" in value or bool(_START.match(value.removeprefix("\ufeff")))


def read_dockerfile(value: str | Path) -> str:
    """The text of a Dockerfile that is given as text or as a path, with line feeds and no byte order mark.

    Raises `SpecificationError` for a path where no file is, and for what is no text of at most 1 MiB.
    """
    if isinstance(value, str) and is_dockerfile_text(value):
        return _normalised(value, "the Dockerfile")
    path = Path(value)
    try:
        if not path.is_file():
            raise SpecificationError(
                f"no Dockerfile is at {str(value)!r:.300}: correct the path; text is recognised by a line break or by "
                "an instruction at its start, such as FROM python:3.12-slim"
            )
        with path.open("rb") as file:
            content = file.read(LIMIT + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a path"
        raise SpecificationError(f"the Dockerfile {str(value)!r:.300} cannot be read: {reason}; correct it") from None
    if len(content) > LIMIT:
        raise _too_large(str(path))
    try:
        return _normalised(content.decode("utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise SpecificationError(
            f"the Dockerfile {path} is not UTF-8 (byte {error.start}), and engines read nothing else; save it as UTF-8"
        ) from None


def _normalised(text: str, origin: str) -> str:
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    if "\0" in text or not text.strip():
        raise SpecificationError(f"{origin} is empty or not text; write at least FROM and an image")
    if len(text.encode("utf-8", "surrogatepass")) > LIMIT:
        raise _too_large(origin)
    if re.search("[\ud800-\udfff]", text):
        raise SpecificationError(f"{origin} holds half of a character pair (a surrogate); save it as UTF-8")
    return text


def _too_large(origin: str) -> SpecificationError:
    return SpecificationError(f"{origin} has more than {LIMIT:,} bytes; is it a Dockerfile? Move data into the context")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction: its name in upper case, its flags (`--from=x`), and the rest of its line."""

    name: str
    flags: tuple[str, ...]
    rest: str
    line: int

    def refused(self, reason: str) -> SpecificationError:
        """The error that names line, instruction and reason; the caller raises it."""
        return SpecificationError(f"Dockerfile line {self.line}: {self.name}: {reason}")

    def flag(self, name: str) -> list[str]:
        """The values of a flag, in order."""
        found = [flag.partition("=") for flag in self.flags if flag.partition("=")[0].lower() == f"--{name}"]
        if not all(value for _, _, value in found):
            raise self.refused(f"--{name} has no value; write --{name}=…")
        return [value for _, _, value in found]

    def sources(self) -> list[str]:
        """Stages and images that the instruction reads files from: `COPY --from=` and `RUN --mount=from=`."""
        found = self.flag("from")[-1:] if self.name == "COPY" else []
        if self.name == "RUN":
            try:
                mounts = [next(csv.reader([value], strict=True)) for value in self.flag("mount")]
            except csv.Error:
                raise self.refused("the fields of --mount= are not comma-separated values") from None
            fields = [field.partition("=") for mount in mounts for field in mount]
            found = [value for key, _, value in fields if key.strip().lower() == "from" and value]
        if any(_VARIABLE.search(name) for name in found):
            raise self.refused("from= takes no variables; name a stage by FROM … AS NAME, and use that name")
        return found


@dataclass(frozen=True, slots=True)
class Dockerfile:
    """A parsed Dockerfile. `syntax` is the frontend image that `# syntax=` names, or empty."""

    syntax: str
    escape: str
    instructions: tuple[Instruction, ...]


def parse(text: str) -> Dockerfile:
    """The instructions of a Dockerfile's text; raises `SpecificationError` with the line for what is not one."""
    lines = _normalised(text, "the Dockerfile").split("\n")
    directives = _directives(lines)
    escape = directives.get("escape", "\\")
    if escape not in ("\\", "`"):
        raise SpecificationError(f"the Dockerfile's escape directive is {escape!r:.50}; it can be \\ or `")
    syntax = directives.get("syntax", "").partition(" ")[0]
    found = tuple(_instructions(lines, escape, known_only=not syntax))
    return Dockerfile(syntax, escape, found)


def _directives(lines: list[str]) -> dict[str, str]:
    """Directives are comments before everything else; the first line that is none ends them."""
    found: dict[str, str] = {}
    for line in lines[1:] if lines[0].startswith("#!") else lines:
        match = _DIRECTIVE.fullmatch(line)
        if match is None or match[1].lower() not in ("syntax", "escape", "check"):
            break
        key = match[1].lower()
        if key in found:
            raise SpecificationError(f"the Dockerfile has two {key} directives; keep one")
        found[key] = match[2]
    return found


def _instructions(lines: list[str], escape: str, *, known_only: bool) -> Iterator[Instruction]:
    numbered = iter(enumerate(lines, 1))
    for number, logical in _logical(numbered, re.escape(escape)):
        instruction = _instruction(logical, number)
        if known_only and instruction.name not in _INSTRUCTIONS:
            raise instruction.refused(f"there is no such instruction; known are {', '.join(_INSTRUCTIONS)}")
        for terminator, chomp in _heredocs(logical, instruction):
            _skip(numbered, terminator, chomp, instruction)
        yield instruction


def _logical(numbered: Iterator[tuple[int, str]], escape: str) -> Iterator[tuple[int, str]]:
    """Lines with their continuations; comments and empty lines are left out, between continued lines too."""
    continued = re.compile(rf"(?:(?<=[^{escape}])|^){escape}[ \t]*$")
    said = ((number, line) for number, line in numbered if line.strip() and not line.lstrip().startswith("#"))
    for number, line in said:
        text, more = continued.subn("", line.lstrip())
        parts = [text]
        while more:
            _, following = next(said, (0, ""))
            text, more = continued.subn("", following)
            parts.append(text)
        if logical := "".join(parts).strip():
            yield number, logical


def _instruction(logical: str, number: int) -> Instruction:
    name, *rest = _SPACE.split(logical.strip(), maxsplit=1)
    flags, arguments = [], ""
    for start, word in placed_words(rest[0] if rest else ""):
        if not word.startswith("--") or word == "--":
            arguments = rest[0][start:].removeprefix("--")
            break
        flags.append(unquote(word))
    return Instruction(name.upper()[:50], tuple(flags), arguments.strip(), number)


def _heredocs(logical: str, instruction: Instruction) -> list[tuple[str, bool]]:
    """The terminators of the here-documents that an instruction opens, and whether tabs may stand before them."""
    if instruction.name == "ONBUILD":
        instruction = _instruction(instruction.rest, instruction.line)
    if instruction.name not in ("RUN", "COPY", "ADD") or _is_json(instruction.rest):
        return []
    opened = [match for match in map(_HEREDOC.fullmatch, words(logical)) if match]
    return [(unquote(match[2]), bool(match[1])) for match in opened]


def _is_json(rest: str) -> bool:
    try:
        return rest.startswith("[") and isinstance(json.loads(rest), list)
    except (ValueError, RecursionError):
        return False


def _skip(numbered: Iterator[tuple[int, str]], terminator: str, chomp: bool, instruction: Instruction) -> None:
    for _, line in numbered:
        if (line.lstrip("\t") if chomp else line) == terminator:
            return
    raise instruction.refused(f"the here-document <<{terminator:.50} has no line {terminator!r:.50} at its end")


@dataclass(slots=True)
class Stage:
    """One build stage: FROM `base`, under a name or none, with what else it takes files from."""

    number: int
    name: str
    base: str
    start: Instruction
    sources: list[tuple[str, Instruction]] = field(default_factory=list)
    triggers: list[Instruction] = field(default_factory=list)
    """ONBUILD instructions: they run in stages that start from this one."""


def stages(
    dockerfile: Dockerfile, arguments: Mapping[str, str], target: str = "", platform: Platform = _DEFAULT_PLATFORM
) -> list[Stage]:
    """The stages in order, base names expanded with the ARGs before the first FROM (`arguments` over defaults)."""
    values = _automatic(arguments, target, platform)
    found: list[Stage] = []
    for instruction in dockerfile.instructions:
        if instruction.name == "FROM":
            found.append(_stage(instruction, len(found), values, dockerfile.escape))
        elif instruction.name == "ARG" and not found:
            _declare(instruction, values, arguments, dockerfile.escape)
        elif not found:
            raise instruction.refused("comes before the first FROM; only ARG may stand there")
        elif instruction.name == "ONBUILD":
            found[-1].triggers.append(_instruction(instruction.rest, instruction.line))
        else:
            found[-1].sources += [(name, instruction) for name in instruction.sources()]
    if not found:
        raise SpecificationError("the Dockerfile has no FROM; start it with FROM and the image to build on")
    return found


def _automatic(arguments: Mapping[str, str], target: str, platform: Platform) -> dict[str, str]:
    """The arguments that need no ARG (Dockerfile reference, "Automatic platform ARGs in the global scope")."""
    values = dict.fromkeys(_BUILDER_ARGUMENTS, _UNKNOWABLE) | {
        "TARGETPLATFORM": str(platform),
        "TARGETOS": platform.os,
        "TARGETARCH": platform.architecture,
        "TARGETVARIANT": "",
        "TARGETSTAGE": target or "default",
    }
    return {name: arguments.get(name, value) for name, value in values.items()}


def _declare(instruction: Instruction, values: dict[str, str], given: Mapping[str, str], escape: str) -> None:
    declared = words(instruction.rest, escape)
    if not declared:
        raise instruction.refused("it names no argument")
    for word in declared:
        name, has_default, default = word.partition("=")
        if name in given:
            values[name] = given[name]
        elif has_default:
            values[name] = _expanded(default, values, escape, instruction)


def _expanded(text: str, values: Mapping[str, str], escape: str, instruction: Instruction) -> str:
    try:
        return expand(text, values, escape)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise instruction.refused(f"{text!r:.100} cannot be expanded: {reason}") from None


def _stage(instruction: Instruction, number: int, values: Mapping[str, str], escape: str) -> Stage:
    match _SPACE.split(instruction.rest):
        case [base] if base:
            name = ""
        case [base, keyword, name] if keyword.lower() == "as":
            name = name.lower()
            if not _STAGE_NAME.fullmatch(name):
                raise instruction.refused(f"{name!r:.100} is no stage name: letters first, then a-z, 0-9, -, _ and .")
        case _:
            raise instruction.refused("it takes an image, or IMAGE AS NAME")
    expanded = _expanded(base, values, escape, instruction)
    if _UNKNOWABLE in expanded:
        raise instruction.refused(
            f"{base!r:.100} depends on the machine that builds; use TARGETARCH or TARGETPLATFORM, or give the value in "
            "build_arguments"
        )
    if not expanded:
        raise instruction.refused(
            f"{base!r:.100} is empty: its argument has no value. Write ARG NAME=DEFAULT before the first FROM, or ARG "
            "NAME there and the value in build_arguments"
        )
    return Stage(number, name, expanded, instruction)


def from_images(
    dockerfile_text: str, arguments: Mapping[str, str], target: str = "", *, platform: Platform = _DEFAULT_PLATFORM
) -> tuple[str, ...]:
    """The images that a build of `target` reads, as they are named, each once: the frontend of `# syntax=`, then those
    of FROM, `COPY --from=` and `RUN --mount=from=` in the stages that the target needs.

    Raises `SpecificationError` for a Dockerfile without FROM, an unknown target and what else no engine could build.
    """
    dockerfile = parse(dockerfile_text)
    known = stages(dockerfile, arguments, target, platform)
    needed, images = _needed(known, _target(known, target))
    frontend = arguments.get("BUILDKIT_SYNTAX") or dockerfile.syntax
    found = [_image(frontend, "the syntax directive")] if frontend else []
    for stage in (stage for stage in known if stage.number in needed):
        found += [_image(name, f"line {line.line}: {line.name}") for name, line in images[stage.number]]
    return tuple(dict.fromkeys(found))


def _image(name: str, where: str) -> str:
    try:
        Reference.parse(name)
    except DefinitionError as error:
        raise SpecificationError(f"Dockerfile {where}: {error}") from None
    return name


def _target(known: list[Stage], target: str) -> Stage:
    if not target:
        return known[-1]
    found = [stage for stage in known if stage.name and stage.name == target.lower()]
    if not found:
        names = ", ".join(stage.name for stage in known if stage.name) or "none: name one by FROM … AS NAME"
        raise SpecificationError(f"the Dockerfile has no stage {target!r:.100} to build; its named stages: {names}")
    return found[-1]


def _needed(known: list[Stage], target: Stage) -> tuple[set[int], dict[int, list[tuple[str, Instruction]]]]:
    """The numbers of the stages that the target needs, itself included, and the external images of each."""
    images: dict[int, list[tuple[str, Instruction]]] = {}
    done: set[int] = set()
    path: list[int] = []
    pending = [(target, False)]
    while pending:
        stage, leaving = pending.pop()
        if leaving:
            done.add(path.pop())
        elif stage.number in path:
            raise stage.start.refused("the stage needs itself, through the stages that it takes files from")
        elif stage.number not in done:
            path.append(stage.number)
            needs, images[stage.number] = _needs(known, stage)
            pending += [(stage, True), *((need, False) for need in needs)]
    return done, images


def _needs(known: list[Stage], stage: Stage) -> tuple[list[Stage], list[tuple[str, Instruction]]]:
    earlier = {other.name: other for other in known[: stage.number] if other.name}
    named = {other.name: other for other in known if other.name}
    needs, images = [], []
    sources = list(stage.sources)
    if base := earlier.get(stage.base.lower()):
        needs.append(base)
        sources += [(name, trigger) for trigger in base.triggers for name in trigger.sources()]
    elif stage.base != SCRATCH:
        images.append((stage.base, stage.start))
    for name, instruction in sources:
        if other := named.get(name.lower()) or _numbered(known, name, instruction):
            needs.append(other)
        elif name != SCRATCH:
            images.append((name, instruction))
    return needs, images


def _numbered(known: list[Stage], name: str, instruction: Instruction) -> Stage | None:
    if not re.fullmatch(r"[+-]?[0-9]{1,9}", name):
        return None
    if not 0 <= int(name) < len(known):
        raise instruction.refused(f"there is no stage number {name}; the last one is {len(known) - 1}")
    return known[int(name)]
