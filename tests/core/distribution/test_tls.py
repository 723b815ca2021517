"""TLS: whose certificates are trusted, and that nothing goes from https to clear text."""

import datetime
import ipaddress
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from prefect_environments.core.distribution.credentials import Credentials
from prefect_environments.core.distribution.registry import Registry
from prefect_environments.core.errors import RegistryAuthError, RegistryError, RegistryUnreachable
from prefect_environments.core.oci import digest as digests
from prefect_environments.core.oci.descriptor import Descriptor
from tests.core.distribution.odd import QUICK, Odd, serve
from tests.core.distribution.test_odd_writes import Uploads
from tests.core.distribution.test_registry import read

Blob = Callable[[bytes], Descriptor]


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A self-signed certificate for 127.0.0.1, with its key in the same file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tests")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .sign(key, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    file = tmp_path / "tls.pem"
    file.write_bytes(made.public_bytes(pem) + key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    return file


@pytest.fixture
def tls(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


def https(odd: Odd, certificate: Path) -> Registry:
    return Registry(odd.address, plain_http=False, ca_file=certificate, limits=QUICK)


async def nothing(request: web.Request) -> web.Response:
    return web.Response(status=404)


async def test_a_private_authority_is_trusted_only_when_named(certificate: Path, tls: ssl.SSLContext) -> None:
    async with serve(nothing, tls) as odd:
        async with Registry(odd.address, plain_http=False, ca_file=certificate) as registry:
            assert await registry.repository("a").find_manifest("t") is None
        async with Registry(odd.address, plain_http=False) as registry:
            with pytest.raises(RegistryUnreachable, match=r"not trusted.*ca_file or SSL_CERT_FILE"):
                await registry.repository("a").find_manifest("t")
            assert registry.traffic.requests == 1


async def test_the_environments_authorities_are_trusted(
    certificate: Path, tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    async with serve(nothing, tls) as odd, Registry(odd.address, plain_http=False) as registry:
        assert await registry.repository("a").find_manifest("t") is None


async def test_a_ca_file_that_is_none_is_named(tmp_path: Path) -> None:
    async with Registry("127.0.0.1:1", plain_http=False, ca_file=tmp_path / "gone.pem") as registry:
        with pytest.raises(RegistryError, match=r"gone\.pem"):
            await registry.ping()


async def test_credentials_are_not_sent_to_a_token_server_in_clear_text(certificate: Path, tls: ssl.SSLContext) -> None:
    async with serve(nothing) as plain:

        async def answer(request: web.Request) -> web.Response:
            return web.Response(status=401, headers={"WWW-Authenticate": f'Bearer realm="http://{plain.address}/t"'})

        credentials = Credentials("ann", "pass-word-5")
        async with serve(answer, tls) as odd:
            made = Registry(odd.address, plain_http=False, ca_file=certificate, credentials=credentials)
            async with made as registry:
                with pytest.raises(RegistryAuthError, match="clear text"):
                    await registry.repository("a").find_manifest("t")
        assert plain.log == []


async def test_a_redirect_from_https_to_http_is_refused(certificate: Path, tls: ssl.SSLContext, blob: Blob) -> None:
    async def answer(request: web.Request) -> web.Response:
        return web.Response(status=307, headers={"Location": "http://storage.example.com/x"})

    async with serve(answer, tls) as odd, https(odd, certificate) as registry:
        with pytest.raises(RegistryError, match="plain http"):
            await read(registry.repository("a"), blob(b"abc"))


async def test_a_registry_that_forgets_its_https_in_a_location_is_kept_to_https(
    certificate: Path, tls: ssl.SSLContext, blob: Blob
) -> None:
    uploads = Uploads()
    uploads.location = "http://127.0.0.1/v2/a/blobs/uploads/{n}?s=1"
    async with serve(uploads.answer, tls) as odd, https(odd, certificate) as registry:
        assert await registry.repository("a").write_blob(blob(b"abc"), b"abc") is True
    assert uploads.stored == {digests.of(b"abc"): b"abc"}
