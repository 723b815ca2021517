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


def test_credentials_by_host_replace_those_of_the_users_own_netrc_in_a_private_file(tmp_path: Path) -> None:
    """Of two entries for a host uv takes the last one; words are quoted, as a password may hold a space or a quote."""
    own = "default login d password e\nmachine own.example.com login a password b\nmacdef init\n cd /x\n\n"
    (tmp_path / ".netrc").write_text(f"{own}machine x.example.com login a password b\nmachine cut.example.com login")
    request = ResolveRequest(
        ("demo",),
        TARGET,
        BASE,
        index_credentials={"https://x.example.com/simple": ("u", 'hidden "#\\ wörd'), "new.example.com": ("n", "word")},
    )
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    env = environment({"HOME": str(tmp_path)}, request, scratch)
    netrc = Path(env["NETRC"])
    assert netrc.parent == scratch and stat.S_IMODE(netrc.stat().st_mode) == 0o600
    assert netrc.read_text().splitlines() == [
        'machine "own.example.com" login "a" password "b"',
        'machine "x.example.com" login "u" password "hidden \\"#\\\\ wörd"',
        'machine "cut.example.com" login "" password ""',
        'machine "new.example.com" login "n" password "word"',
        'default login "d" password "e"',
    ]
    assert "hidden" not in str(ResolveError('uv says hidden "#\\ wörd'))


def test_a_netrc_that_cannot_be_read_does_not_take_the_definitions_logins_away(tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_bytes("machine own.example.com login a password wörd\n".encode("latin-1"))
    request = ResolveRequest(("demo",), TARGET, BASE, index_credentials={"x.example.com": ("u", "hidden-word")})
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    env = environment({"HOME": str(tmp_path)}, request, scratch)
    assert Path(env["NETRC"]).read_text() == 'machine "x.example.com" login "u" password "hidden-word"\n'


def test_keys_to_prefect_and_azure_are_not_for_uv_and_what_it_starts(tmp_path: Path) -> None:
    """Where sources are built, that is code of packages. keyring may sign in to Azure."""
    secrets = {"PREFECT_API_KEY": "a", "PREFECT_API_AUTH_STRING": "b"}
    azure = {"AZURE_CLIENT_SECRET": "c", "IDENTITY_HEADER": "d", "MSI_SECRET": "e"}
    kept = {"AZURE_CLIENT_ID": "f", "IDENTITY_ENDPOINT": "http://localhost/token"}
    assert environment(secrets | azure | kept, PLAIN, tmp_path) == kept | {"UV_PYTHON_DOWNLOADS": "never"}
    with_keyring = environment({**secrets, **azure, "UV_KEYRING_PROVIDER": "subprocess"}, PLAIN, tmp_path)
    assert azure.items() <= with_keyring.items() and not secrets.keys() & with_keyring


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
