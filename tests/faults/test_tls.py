"""Whole builds against a registry that is reached by TLS only, with an authority of the suite's own."""

import datetime
import ipaddress
import shutil
import ssl
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from prefect_environments.core.attachments import DEFINITION, LOCK, SBOM
from prefect_environments.core.definition import EnvironmentDefinition
from prefect_environments.core.errors import RegistryUnreachable
from prefect_environments.core.oci.validate import validate
from prefect_environments.core.registry_settings import RegistrySettings
from prefect_environments.core.site import open_site
from prefect_environments.core.versions import FolderVersionStore
from tests.faults.parts import PATIENT, leftovers
from tests.faults.proxy import proxy_to
from tests.images.conftest import real_pip
from tests.images.parts import Team, build
from tests.support.base import BaseLayout
from tests.support.registry import Registry
from tests.support.wheels import make_wheel

NAME = "tls"
_NOW = datetime.datetime.now(datetime.UTC)


class Authority:
    """A certificate authority in a folder. `file` is its own certificate, as PEM."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "the tests' own authority")])
        own = self._signed(self._name, self._key, [(x509.BasicConstraints(ca=True, path_length=0), True)])
        self.file = folder / "authority.pem"
        self.file.write_bytes(own.public_bytes(serialization.Encoding.PEM))

    def server(self, host: x509.GeneralName, *, days: int = 30) -> ssl.SSLContext:
        """TLS for a server called `host`, by a certificate that ends in so many days."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "registry")])
        made = self._signed(name, key, [(x509.SubjectAlternativeName([host]), False)], days=days)
        pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
        file = self._folder / "server.pem"
        file.write_bytes(made.public_bytes(pem) + key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        return context

    def _signed(
        self,
        name: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        extensions: list[tuple[x509.ExtensionType, bool]],
        *,
        days: int = 30,
    ) -> x509.Certificate:
        builder = x509.CertificateBuilder().subject_name(name).issuer_name(self._name).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number())
        builder = builder.not_valid_before(_NOW - datetime.timedelta(days=60))
        builder = builder.not_valid_after(_NOW + datetime.timedelta(days=days))
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        return builder.sign(self._key, hashes.SHA256())


HERE = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    folder = tmp_path / "authority"
    folder.mkdir()
    return Authority(folder)


@pytest.fixture
def links(tmp_path: Path) -> Path:
    """A folder of wheels to resolve from."""
    folder = make_wheel(tmp_path / "wheels", "alpha", "1.0", requires=["beta"]).parent
    make_wheel(folder, "beta", "1.0")
    shutil.copy(real_pip(), folder)
    return folder


@pytest.fixture
def wanted(links: Path) -> Callable[[str], EnvironmentDefinition]:
    """The definition on a base image."""
    return lambda base: EnvironmentDefinition(
        name=NAME, base_image=base, requirements=("alpha",), find_links=(str(links),), no_index=True
    )


def by_tls(registry: Registry, address: str, ca_file: Path, folder: Path) -> Team:
    settings = RegistrySettings(address, registry.username, registry.password, ca_file=str(ca_file), limits=PATIENT)
    return Team(settings, FolderVersionStore(folder / "versions", "team"), repository_prefix="tls")


async def test_a_whole_build_goes_over_tls(
    basic_registry: Registry,
    base_layout: BaseLayout,
    authority: Authority,
    wanted: Callable[[str], EnvironmentDefinition],
    tmp_path: Path,
) -> None:
    """Base, layers, attachments, version and the rerun, with a password; nothing of it needs plain http."""
    base_layout.push(
        basic_registry.repository_url("tls/base:1"), username=basic_registry.username, password=basic_registry.password
    )
    async with proxy_to(basic_registry.address, tls=authority.server(HERE)) as front:
        team = by_tls(basic_registry, front.address, authority.file, tmp_path)
        definition = wanted(f"{front.address}/tls/base:1")
        first = await build(team, definition, tmp_path / "cache")
        assert first.image is not None and first.image.bytes_sent > 0
        before = len(front.seen)
        again = await build(team, definition, tmp_path / "empty-cache")
        assert again.ready.reused and again.ready.reference == first.ready.reference
        assert len(front.seen) - before <= 2, "one HEAD, and a 401 before it to learn how to sign in"
    direct = replace(team.registry_settings, address=basic_registry.address, ca_file=None)
    async with open_site(replace(team, registry_settings=direct), cache=tmp_path / "cache") as site:
        await validate(site.repository(NAME), first.ready.digest, tmp_path / "check")
        attached = {item.artifact_type for item in await site.repository(NAME).referrers(first.ready.digest)}
    assert attached == {DEFINITION, LOCK, SBOM}


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("another authority", r"certificate is not trusted.*ca_file or SSL_CERT_FILE"),
        ("another host", r"(Hostname|host ?name|IP address) mismatch.*ca_file or SSL_CERT_FILE"),
        ("an expired certificate", r"certificate has expired"),
    ],
)
async def test_a_certificate_that_is_not_the_registrys_ends_a_build_before_anything_is_sent(
    case: str,
    said: str,
    *,
    basic_registry: Registry,
    base_layout: BaseLayout,
    authority: Authority,
    wanted: Callable[[str], EnvironmentDefinition],
    tmp_path: Path,
) -> None:
    """Not one request, and so no password, reaches the server; nothing is resolved, kept or registered."""
    host = x509.DNSName("registry.example.com") if case == "another host" else HERE
    tls = authority.server(host, days=-1 if case == "an expired certificate" else 30)
    async with proxy_to(basic_registry.address, tls=tls) as front:
        if case == "another authority":
            (tmp_path / "other").mkdir()
            authority = Authority(tmp_path / "other")
        team = by_tls(basic_registry, front.address, authority.file, tmp_path)
        with pytest.raises(RegistryUnreachable, match=said) as caught:
            await build(team, wanted(base_layout.reference), tmp_path / "cache")
        assert front.seen == []
    assert front.address in str(caught.value) and basic_registry.password not in str(caught.value)
    assert await team.versions.names() == []
    assert not (tmp_path / "cache" / "wheels").exists() and leftovers(tmp_path) == []


async def test_a_registry_that_speaks_no_tls_is_told_as_such(
    basic_registry: Registry,
    base_layout: BaseLayout,
    authority: Authority,
    wanted: Callable[[str], EnvironmentDefinition],
    tmp_path: Path,
) -> None:
    """https to a plain http server: the message names the setting, and no password went out in clear text."""
    async with proxy_to(basic_registry.address) as front:
        team = by_tls(basic_registry, front.address, authority.file, tmp_path)
        with pytest.raises(RegistryUnreachable, match="plain http, set plain_http=True"):
            await build(team, wanted(base_layout.reference), tmp_path / "cache")
        assert all("authorization" not in headers for headers in front.seen)
