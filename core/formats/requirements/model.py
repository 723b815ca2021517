"""What requirements files ask for, in one spelling that does not depend on how they were written."""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Requirements:
    """Everything that `pip install -r` would be asked for, nested files included.

    Two files that differ only in order, case, spelling of names, comments, line ends or encoding are equal.
    """

    packages: tuple[str, ...] = ()
    """Normalised lines, sorted, each once: `name[extra]>=1,<2; marker --hash=sha256:…`, `name @ url ; marker`,
    or a bare URL whose name is only known after fetching it. Local paths are absolute `file:` URLs."""
    constraints: tuple[str, ...] = ()
    """The same for `-c` files: they limit a version, and install nothing."""
    index_url: str | None = None
    """The last `--index-url`; `None` means the resolver's default index, or no index at all if `no_index`."""
    extra_index_urls: tuple[str, ...] = ()
    """Every `--extra-index-url`, in order of appearance: the order decides which index is asked first."""
    find_links: tuple[str, ...] = ()
    """Every `--find-links`, in order of appearance, as URLs (`file:` for folders)."""
    no_index: bool = False
    pre: bool = False
    """Pre-releases count as candidates of every package."""
    only_binary: tuple[str, ...] = ()
    """Names, or `:all:`, whose source distributions are not looked at: an older wheel wins over a newer sdist."""
    require_hashes: bool = False
    """`--require-hashes` was given, or some package has a `--hash`, which implies it for all (as in pip)."""
    warnings: tuple[str, ...] = field(default=(), compare=False)
    """What was read but has no effect on an image, with file and line; no part of equality or hash."""
