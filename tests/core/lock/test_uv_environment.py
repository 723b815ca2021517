"""What uv is started with: which settings stay, where credentials go, and how builds are kept from running."""

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from prefect_environments.core.errors import ResolveError
from prefect_environments.core.lock.resolver import ResolveRequest
from prefect_environments.core.lock.uv_environment import environment, index_options, without_builds
from tests.core.lock.conftest import BASE, TARGET

PLAIN = ResolveRequest(("demo",), TARGET, BASE)


def test_settings_of_where_packages_come_from_stay_and_others_go(tmp_path: Path) -> None:
    stays = {
        "PATH": "/bin",
        "HTTPS_PROXY": "http://proxy.example.com",
        "SSL_CERT_FILE": "/etc/ca.pem",
        "UV_DEFAULT_INDEX": "https://index.example.com/simple",
        "UV_INDEX": "own=https://own.example.com/simple",
        "UV_INDEX_OWN_USERNAME": "u",
        "UV_CACHE_DIR": "/cache",
        "UV_KEYRING_PROVIDER": "subprocess",
    }
    goes = ("UV_RESOLUTION", "UV_PRERELEASE", "UV_INDEX_STRATEGY", "UV_NO_BUILD", "UV_A_LATER_SETTING", "PYTHONPATH")
    found = environment(stays | dict.fromkeys(goes, "x"), PLAIN, tmp_path)
    assert found == stays | {"UV_PYTHON_DOWNLOADS": "never"}


def test_the_definitions_index_replaces_the_workers_and_its_extras_come_first(tmp_path: Path) -> None:
    request = ResolveRequest(
        ("demo",),
        TARGET,
        BASE,
        index_url="https://main.example.com/simple",
        extra_index_urls=("https://u:p%20w@extra.example.com/simple",),
    )
    worker = {"UV_INDEX_URL": "https://w.example.com", "UV_INDEX": "https://x.example.com"}
    env = environment(worker, request, tmp_path)
    assert env["UV_DEFAULT_INDEX"] == "definition=https://main.example.com/simple"
    assert env["UV_INDEX"] == "extra0=https://extra.example.com/simple https://x.example.com"
    assert (env["UV_INDEX_EXTRA0_USERNAME"], env["UV_INDEX_EXTRA0_PASSWORD"]) == ("u", "p w")
    assert "UV_INDEX_URL" not in env


def test_no_index_leaves_no_index_and_options_hold_no_secret(tmp_path: Path) -> None:
    request = ResolveRequest(
        ("demo",), TARGET, BASE, no_index=True, find_links=("https://u:hidden@links.example.com/x", "/srv/wheels")
    )
    env = environment({"UV_DEFAULT_INDEX": "https://w.example.com", "UV_FIND_LINKS": "/x"}, request, tmp_path)
    assert not {"UV_DEFAULT_INDEX", "UV_FIND_LINKS"} & set(env)
    assert index_options(request, "first-index") == (
        *("--index-strategy", "first-index", "--find-links", "https://links.example.com/x"),
        *("--find-links", "/srv/wheels", "--no-index"),
    )


def test_credentials_by_host_go_before_the_users_own_netrc_in_a_private_file(tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("machine own.example.com login a password b\n")
    request = ResolveRequest(
        ("demo",), TARGET, BASE, index_credentials={"https://x.example.com/simple": ("u", "hidden-word")}
    )
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    env = environment({"HOME": str(tmp_path)}, request, scratch)
    netrc = Path(env["NETRC"])
    assert netrc.parent == scratch and stat.S_IMODE(netrc.stat().st_mode) == 0o600
    assert netrc.read_text().splitlines() == [
        "machine x.example.com login u password hidden-word",
        "machine own.example.com login a password b",
    ]
    assert "hidden-word" not in str(ResolveError("uv says hidden-word"))


def test_without_builds_no_interpreter_starts_but_git_and_keyring_do(tmp_path: Path) -> None:
    """keyring is a Python program: its wrapper gives it its usual environment back."""
    tools = tmp_path / "tools"
    tools.mkdir()
    keyring = tools / "keyring"
    keyring.write_text(f"#!{sys.executable}\nimport sys\nprint('a word for', *sys.argv[1:])\n")
    keyring.chmod(0o755)
    scratch = tmp_path / "scratch it's"
    scratch.mkdir()
    env = without_builds({"PATH": f"{tools}:/usr/bin:/bin"}, scratch)
    done = subprocess.run(["sh", "-c", "keyring get x"], env=env, capture_output=True, text=True, check=False)
    assert done.stdout == "a word for get x\n"
    with pytest.raises(subprocess.CalledProcessError):
        subprocess.run([sys.executable, "-c", "print(1)"], env=env, capture_output=True, check=True)
