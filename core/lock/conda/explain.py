"""rattler's errors as ours, with what to do next."""

import re

from prefect_environments.core.errors import ResolveError
from prefect_environments.core.lock import urls
from prefect_environments.core.lock.conda.request import CondaRequest

_ABSENT = re.compile(
    r"No candidates were found for ([^\n]+?)\.?(?:\n|$)|(\w[^\n]*), for which no candidates were found"
)
_REFUSED = re.compile(r"\b40[13] (?:Unauthorized|Forbidden)")
_MISSING = re.compile(r"could not find subdir|\b404\b")
_NEEDED = re.compile(r"__([a-z]+) ([^,\s]+), for which no candidates were found")


def unsolved(request: CondaRequest, said: str, has: dict[str, tuple[str, str]]) -> ResolveError:
    """No set of packages satisfies the request; `said` is the solver's explanation, which is told whole."""
    return ResolveError(
        f"no set of conda packages for {request.subdir} satisfies {', '.join(request.specs)} (channels: "
        f"{', '.join(map(urls.without_user_info, request.channels))}):\n{said.strip()}\n{_advice(request, said, has)}"
    )


def unreadable(request: CondaRequest, said: str) -> ResolveError:
    """A channel cannot be read."""
    told = urls.without_user_info(said.strip())
    if _REFUSED.search(told):
        advice = "give a user and password for the channel's host, or check that they may read this channel"
    elif _MISSING.search(told):
        advice = (
            "check the channel's name or address: a channel has a folder noarch with repodata.json in it. Names are "
            "below CONDA_CHANNEL_ALIAS"
        )
    else:
        advice = "check the channel's address and the network, and try again"
    listed = ", ".join(map(urls.without_user_info, request.channels))
    return ResolveError(f"a conda channel cannot be read (channels: {listed}): {told}\n{advice}")


def _advice(request: CondaRequest, said: str, has: dict[str, tuple[str, str]]) -> str:
    if needed := _NEEDED.search(said):
        name = f"__{needed[1]}"
        there = f"{name} {has[name][0]}" if name in has else f"no {name}"
        advice = f"The image has {there}; a package needs {name} {needed[2]}: choose another base image or version."
        return f"{advice} CUDA comes with the base image." if needed[1] == "cuda" else advice
    if "strict channel priority" in said:
        return (
            "Channels have strict priority: a package comes from the first channel that has it, in any version. "
            "Change their order, or take one package from another channel: channel::package."
        )
    if "cutoff" in said:
        return f"Packages newer than {request.exclude_newer} are left out: choose a later time."
    if absent := _ABSENT.search(said):
        return (
            f"None of the channels has {absent[1] or absent[2]} for {request.subdir}: check name and version, add a "
            "channel that has it, or move it to the pip requirements."
        )
    return "Loosen the versions that stand against each other, or add a channel that has others."
