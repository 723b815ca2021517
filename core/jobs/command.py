"""From a job's config to the words that are started."""

import re
import shlex

from prefect_environments.core.jobs.config import ScriptRunConfig

_OPERATORS = frozenset(
    ("&&", "||", ";", "|", "|&", "&", ">", ">>", "<", "2>", "2>>", "&>", "&>>", "2>&1", "1>&2", ">&2")
)
_GLUED = re.compile(r"[12&]>>?[A-Za-z._/&]\S*|(?:&&|\|\|)[\w./]\S*|[\w./]\S*(?:&&|\|\|)")
"""An operator without a space beside it: `2>/dev/null`, `&&python`."""
_SHELL = ("/bin/sh", "-c")
_BOOTSTRAP = """\
shell=$(command -v bash) || shell=/bin/sh
"$shell" "$0" || { code=$?; echo "the bootstrap script $0 failed with exit status $code" >&2; exit $code; }
exec "$@"
"""
"""Runs the script `$0`, then becomes the command that follows."""


def command_of(config: ScriptRunConfig, python: str) -> tuple[str, ...]:
    """The words to start: the script by the environment's `python`, or the command, after the bootstrap script."""
    command = words_of(config, python)
    return (*_SHELL, _BOOTSTRAP, plain(config.bootstrap), *command) if config.bootstrap else command


def words_of(config: ScriptRunConfig, python: str) -> tuple[str, ...]:
    """The script by the environment's `python`, or the command, without a bootstrap script."""
    if config.script:
        return (python, plain(config.script), *config.arguments)
    if isinstance(config.command, str):
        return (*_SHELL, config.command)
    if any(map(_is_operator, config.command)):
        return (*_SHELL, " ".join(map(_word, config.command)))
    return config.command


def plain(path: str) -> str:
    """A file's path as a word that no program takes for an option."""
    return f"./{path}" if path.startswith("-") else path


def _is_operator(word: str) -> bool:
    """Whether a word means something to a shell alone; `"a; b".split()` leaves the semicolon at its word."""
    return word in _OPERATORS or bool(_GLUED.fullmatch(word)) or (word.endswith(";") and len(word.split()) == 1)


def _word(word: str) -> str:
    """A word of a line that was split at its spaces is part of shell text as it is; one with spaces was given whole."""
    return shlex.quote(word) if not word or word.split() != [word] else word
