"""The options that pip allows in requirements files, and what each one means for an image made of wheels."""

import optparse
import re
import shlex
from typing import Any, NoReturn

from prefect_environments.core.formats.requirements import credentials
from prefect_environments.core.formats.requirements.text import Line

_OPTION_STARTS = re.compile(r"(?:^|\s)(?=-)")

_APPENDED = (
    ("-e", "--editable"),
    ("-r", "--requirement"),
    ("-c", "--constraint"),
    ("--extra-index-url",),
    ("-f", "--find-links"),
    ("--no-binary",),
    ("--only-binary",),
    ("--trusted-host",),
    ("--use-feature",),
    ("--hash",),
    ("-C", "--config-settings", "--config-setting"),
    ("--global-option",),
    ("--install-option",),
)
_FLAGS = (("--no-index",), ("--pre",), ("--prefer-binary",), ("--require-hashes",), ("-Z", "--always-unzip"))

IGNORED = {
    "trusted_host": "--trusted-host has no effect: certificates are always verified; "
    "make the host's certificate authority known to the worker instead",
    "use_feature": "--use-feature has no effect: pip does not run",
    "config_settings": "--config-settings has no effect: wheels are installed as they are, nothing is built",
    "prefer_binary": "--prefer-binary has no effect: a package whose chosen version has no fitting wheel is named "
    "in an error; use --only-binary to pick the newest version that has one",
    "always_unzip": "--always-unzip has no effect: wheels are always unpacked",
}
"""Options that are read, and noted in `Requirements.warnings`."""

_BUILDS = {
    "no_binary": "--no-binary asks to build from source",
    "global_option": "--global-option passes options to a build from source",
    "install_option": "--install-option passes options to a build from source",
}
_OF_A_REQUIREMENT = frozenset({"hash", "config_settings"})


class _Wrong(Exception):  # never leaves this module, so that no foreign text becomes an error's context
    pass


class _Parser(optparse.OptionParser):
    """optparse, because pip uses it: `--option=value`, `-rfile` and unique prefixes are read alike."""

    def error(self, msg: str) -> NoReturn:
        raise _Wrong(msg)


def _parser() -> _Parser:
    parser = _Parser(add_help_option=False)
    for names in _APPENDED:
        destination = names[1 if len(names) > 1 else 0].lstrip("-").replace("-", "_")
        parser.add_option(*names, action="append", dest=destination)
    for names in _FLAGS:
        parser.add_option(*names, action="store_true", default=False)
    parser.add_option("-i", "--index-url", "--pypi-url", dest="index_url")
    return parser


_PARSER = _parser()


def split(line: Line) -> tuple[str, dict[str, Any]]:
    """The requirement on the line (maybe empty) and its options, those that were given only.

    Raises `RequirementsError` for options that pip does not know, or that need a build from source.
    """
    start = _OPTION_STARTS.search(line.text)
    if not start:
        return line.text, {}
    requirement = line.text[: start.start()].strip()
    options = _options(line, line.text[start.end() :])
    for name, reason in _BUILDS.items():
        if any(value != ":none:" for value in options.get(name, ())):
            raise line.refused(f"{reason}, and images are assembled from wheels only; remove it, or build a wheel")
    if requirement and (misplaced := sorted(options.keys() - _OF_A_REQUIREMENT)):
        name = misplaced[0].replace("_", "-")
        raise line.refused(f"--{name} cannot stand behind a requirement; give it a line of its own")
    return requirement, options


def _options(line: Line, text: str) -> dict[str, Any]:
    wrong, words, rest = "", list[str](), list[str]()
    values = optparse.Values()
    try:
        words = shlex.split(text)
    except ValueError:
        wrong = "a quote or a backslash is left open; close it"
    try:
        values, rest = _PARSER.parse_args(words)
    except _Wrong as error:
        wrong = f"{credentials.mask(str(error))}; see pip's documentation for the options of a requirements file"
        if line.text != line.written:
            wrong = "an option is unknown or lacks its value"
    if wrong:
        raise line.refused(wrong)
    if rest:
        raise line.refused("there is text behind the options; give it a line of its own, or quote a value with spaces")
    return {name: value for name, value in vars(values).items() if value}
