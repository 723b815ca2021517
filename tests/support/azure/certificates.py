"""The suite's own certificate authority, and what it signs."""

import datetime
import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.support.session import Session

VAULT_DOMAIN = "vault.example.test"
"""The certificate is good for the names right under it, too."""

_PEM, _PKCS8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
_Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True)
class Authority:
    """The PEM files of an authority and of the server certificate, with its key, that it signed."""

    ca_file: Path
    server_file: Path

    def server_context(self) -> ssl.SSLContext:
        """For servers on 127.0.0.1, localhost and names under `VAULT_DOMAIN`."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.server_file)
        return context


def session_authority(session: Session) -> Authority:
    """The authority of this test session; the first who asks makes it."""
    known = session.once("azure-authority", lambda: _make(session.folder))
    return Authority(Path(known["ca_file"]), Path(known["server_file"]))


def client_certificate(common_name: str = "service-principal") -> tuple[bytes, x509.Certificate]:
    """A self-signed certificate with its RSA key as PEM, as a service principal signs in with, and the certificate."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    made = _builder(common_name, common_name, key).sign(key, hashes.SHA256())
    return _pem(made, key), made


def _make(folder: Path) -> dict[str, str]:
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca = (
        _builder("tests' authority", "tests' authority", ca_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(ca_key, hashes.SHA256())
    )
    names: list[x509.GeneralName] = [
        x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
        x509.DNSName("localhost"),
        x509.DNSName(f"*.{VAULT_DOMAIN}"),
    ]
    server = (
        _builder("tests' server", "tests' authority", key)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    ca_file, server_file = folder / "azure-ca.pem", folder / "azure-server.pem"
    ca_file.write_bytes(ca.public_bytes(_PEM))
    server_file.write_bytes(_pem(server, key))
    return {"ca_file": str(ca_file), "server_file": str(server_file)}


def _builder(subject: str, issuer: str, key: _Key) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=30))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _pem(certificate: x509.Certificate, key: _Key) -> bytes:
    return certificate.public_bytes(_PEM) + key.private_bytes(_PEM, _PKCS8, serialization.NoEncryption())
