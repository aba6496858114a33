"""TLS is verified: a certificate that nobody vouches for, or for another name, is refused by each of our clients, and told as such."""

import asyncio
import ssl
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from starsearch.errors import EngineUnavailable, SourceUnavailable
from starsearch.github.client import open_github
from starsearch.github.credentials import Credential, Token
from starsearch.github.rest import open_source
from starsearch.inference.client import open_client, preflight

SELF_SIGNED = r"its certificate is refused \(self[- ]signed certificate.*\).*SSL_CERT_FILE.*cannot be switched off"
OTHER_NAME = r"its certificate is refused \(IP address mismatch.*\).*SSL_CERT_FILE"
MODELS = b'{"object": "list", "data": [{"id": "m", "object": "model"}]}'


def self_signed(folder, address):
    """A file with a key and the certificate for one IP address that it signed itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "nobody")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - timedelta(days=1), now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = folder / f"{address}.pem"
    path.write_bytes(secret + certificate.public_bytes(serialization.Encoding.PEM))
    return path


@pytest.fixture
async def server(tmp_path):
    """Serves a list of models over TLS, with a certificate for an address; gives its URL, the certificate's file and what was read."""

    @asynccontextmanager
    async def serve(address="127.0.0.1"):
        certificate = self_signed(tmp_path, address)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        read = []

        async def answer(reader, writer):
            read.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n")
            writer.write(b"content-length: %d\r\n\r\n%s" % (len(MODELS), MODELS))
            await writer.drain()
            writer.close()

        async with await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context) as serving:
            yield f"https://127.0.0.1:{serving.sockets[0].getsockname()[1]}", certificate, read

    return serve


async def by_engine(url):
    async with open_client(f"{url}/v1", key="sk-canary", patience_seconds=0) as client:
        return await preflight(client, None, purpose="LLM")


async def by_graphql(url):
    async with open_github(f"{url}/graphql", [Credential(Token("token 1 of 1", "ghp_canary"), 1)]) as github:
        return await github.ping()


async def by_rest(url):
    async with open_source(url, "ghp_canary") as source:
        return await source.ping()


CLIENTS = pytest.mark.parametrize(
    ("ask", "kind"), [(by_engine, EngineUnavailable), (by_graphql, SourceUnavailable), (by_rest, SourceUnavailable)]
)


@CLIENTS
async def test_a_certificate_that_nobody_vouches_for_is_refused_before_anything_is_sent(server, monkeypatch, no_naps, ask, kind):
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    async with server() as (url, _, read):
        with pytest.raises(kind, match=SELF_SIGNED):
            await ask(url)
    assert read == []  # neither key nor token


@CLIENTS
async def test_a_certificate_for_another_address_is_refused_though_its_authority_is_trusted(server, monkeypatch, no_naps, ask, kind):
    async with server("127.0.0.2") as (url, certificate, read):
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        with pytest.raises(kind, match=OTHER_NAME):
            await ask(url)
    assert read == []


async def test_the_file_that_the_message_asks_for_is_what_it_takes(server, monkeypatch):
    async with server() as (url, certificate, read):
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        assert (await by_engine(url)).model == "m"
        await by_rest(url)
    assert len(read) == 2
