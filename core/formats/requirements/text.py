"""From bytes to logical lines: encodings, continuations, comments and environment variables."""

import codecs
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from prefect_environments.core.errors import RequirementsError
from prefect_environments.core.formats.requirements import credentials
from prefect_environments.core.redact import MASK, redact

LONGEST_LINE = 100_000
"""Characters of a logical line; a package with a hundred hashes needs a tenth of it."""

_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16: its BOM starts with UTF-16's
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_CODING = re.compile(rb"#[^\r\n]*coding[:=][ \t]*([-\w.]+)")
_CHARACTER_SETS = re.compile(r"ascii|utf-8|iso8859-\d+|cp\d+|koi8-[rtu]|gb\w+|big5\w*|shift_jis\w*|euc_\w+")
_COMMENT = re.compile(r"(?:^|\s)#.*", re.DOTALL)
_VARIABLE = re.compile(r"\$\{([A-Z0-9_]+)\}")
_VARIABLE_IN_USER_INFO = re.compile(r"://[^\s/?#]*\$\{[^\s/?#]*@")
_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Line:
    """A logical line: continuations joined, comment removed."""

    origin: str
    number: int
    written: str
    """As it stands in the file: messages show this one, so an expanded variable is never shown."""
    text: str
    """With environment variables expanded."""

    @property
    def place(self) -> str:
        return f"{self.origin}:{self.number}"

    def refused(self, reason: str) -> RequirementsError:
        """The error that names file, line, text (credentials masked) and reason; the caller raises it."""
        return RequirementsError(f"{self.place}: cannot read {credentials.mask(self.written)!r}: {reason}")


def decode(content: bytes, origin: str) -> str:
    """The text of a file: by its BOM, else its coding comment (PEP 263), else UTF-8; never by the machine's locale."""
    bom, encoding = next(((bom, name) for bom, name in _BOMS if content.startswith(bom)), (b"", ""))
    encoding = encoding or _declared(content, origin)
    try:
        return content[len(bom) :].decode(encoding)
    except UnicodeDecodeError as error:
        start = error.start
    before = content[len(bom) :][:start].decode(encoding, "replace")
    number = len(f"{before}.".splitlines())
    raise RequirementsError(
        f"{origin}:{number}: the byte at offset {len(bom) + start} is not {encoding.upper()}; save the file as UTF-8"
    )


def _declared(content: bytes, origin: str) -> str:
    for number, line in enumerate(content.split(b"\n", 2)[:2], 1):
        if found := _CODING.match(line):
            label = found[1].decode("ascii", "replace")
            try:
                name = codecs.lookup(label).name
            except (LookupError, ValueError):
                name = ""
            if not _CHARACTER_SETS.fullmatch(name):
                raise RequirementsError(
                    f"{origin}:{number}: the coding comment names no known character set: {label!r:.60}; "
                    "save the file as UTF-8 and remove the comment"
                )
            return name
    return "utf-8"


def logical_lines(lines: Iterable[str], origin: str) -> Iterator[Line]:
    """The lines that say something, numbered by their first physical line, as pip joins and strips them."""
    for number, joined in _joined(lines):
        written = _COMMENT.sub("", joined).strip()
        if not written:
            continue
        line = Line(origin, number, written, written)
        if len(written) > LONGEST_LINE:
            raise line.refused(f"the line has more than {LONGEST_LINE:,} characters; split it")
        _refuse_control(line)
        yield _expanded(line)


def _joined(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    first, parts = 0, list[str]()
    for number, line in enumerate(lines, 1):
        comment = line.lstrip().startswith("#")
        first = first if parts else number
        if line.endswith("\\") and not comment:
            parts.append(line.rstrip("\\"))
            continue
        # a comment ends the logical line that it interrupts, and gets a space so as to be seen as one
        yield first, "".join([*parts, f" {line}" if comment else line])
        parts.clear()
    if parts:
        yield first, "".join(parts)


def _refuse_control(line: Line) -> None:
    if found := _CONTROL.search(line.text):
        if found[0] == "\0":
            raise line.refused("it holds NUL characters, as UTF-16 without a byte order mark does; save it as UTF-8")
        raise line.refused(f"it holds the control character U+{ord(found[0]):04X}; remove it")


def _expanded(line: Line) -> Line:
    """Expand `${NAME}` (upper case, as in pip) where the value is no credential; refuse where it is or is missing."""
    if _VARIABLE_IN_USER_INFO.search(line.written):
        raise line.refused(f"an environment variable stands in a URL's user-info; {credentials.ADVICE}")
    names = sorted(set(_VARIABLE.findall(line.written)))
    for name in names:
        value = os.environ.get(name, "")
        if credentials.looks_secret(name) or (value and redact(value) == MASK):
            raise line.refused(f"the environment variable {name} looks like a credential; {credentials.ADVICE}")
        if not value:
            raise line.refused(f"the environment variable {name} is not set or empty; set it or write its value")
        if "${" in value:
            raise line.refused(f"the value of the environment variable {name} names a variable; write the value itself")
    if not names:
        return line
    expanded = replace(line, text=_VARIABLE.sub(lambda found: os.environ.get(found[1], ""), line.written))
    if len(expanded.text) > LONGEST_LINE:
        raise line.refused(f"with its variables expanded the line has more than {LONGEST_LINE:,} characters")
    _refuse_control(expanded)
    if re.search(r"[\r\n\x0b\x0c\u2028\u2029]", expanded.text):
        raise line.refused("an environment variable's value has several lines; a requirement needs one")
    return expanded
