"""TLS, and what is read again without anybody noticing."""

import contextlib
import datetime as dt
import ipaddress
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from feature_assets.config import Settings
from feature_assets.errors import ConfigurationError
from feature_assets.server.process import run
from feature_assets.server.tls import Files
from tests.server.conftest import Platform, bearer, fill, served

PATH = "/get-online-features"
QUESTION = {"features": ["weather:wind"], "entities": {"origin": ["JFK"]}}


def made(folder: Path, name: str = "server", *, password: bytes | None = None, days: int = 30) -> Files:
    """A certificate for 127.0.0.1 that signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    who = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(who)
        .issuer_name(who)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=60))
        .not_valid_after(now + dt.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    files = Files(folder / f"{name}.pem", folder / f"{name}.key")
    files.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    hidden = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    files.key.touch(mode=0o600)
    files.key.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, hidden))
    return files


# What is wrong shows at the start.


def test_files_that_do(tmp_path):
    context = made(tmp_path).context()
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2


def test_files_that_do_not(tmp_path, caplog):
    files = made(tmp_path)
    with pytest.raises(ConfigurationError, match=r"nothing.pem cannot be read: No such file"):
        Files(tmp_path / "nothing.pem", files.key).context()
    with pytest.raises(ConfigurationError, match=r"nothing.key cannot be read: No such file"):
        Files(files.certificate, tmp_path / "nothing.key").context()
    with pytest.raises(ConfigurationError, match="is not the key of"):
        Files(files.certificate, made(tmp_path, "other").key).context()
    with pytest.raises(ConfigurationError, match="is no certificate in PEM"):
        Files(files.key, files.key).context()
    with pytest.raises(ConfigurationError, match="is encrypted"):
        made(tmp_path, "hidden", password=b"planted").context()
    text = tmp_path / "text.key"
    text.touch(mode=0o600)
    text.write_text("no key")
    with pytest.raises(ConfigurationError, match="is no private key"):
        Files(files.certificate, text).context()
    files.key.chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod 640"):
        files.context()
    made(tmp_path, "old", days=-1).context()
    assert "the certificate has ended" in caplog.text
    made(tmp_path, "aging", days=3).context()
    assert "the certificate ends soon" in caplog.text


@pytest.mark.parametrize("given", [{"tls_certificate": "server.pem"}, {"tls_key": "server.key"}], ids=str)
def test_one_without_the_other(given, tmp_path):
    with pytest.raises(ConfigurationError, match="tls_certificate and tls_key go together"):
        run(Settings(root=tmp_path), port=0, **given)
    (tmp_path / "feature_assets.toml").write_text(f"[server]\n{next(iter(given))} = 'x'\n")
    with pytest.raises(ConfigurationError, match="tls_certificate and tls_key go together"):
        Settings.load(tmp_path / "feature_assets.toml")


# What runs.


@pytest.fixture
def secured(tmp_path) -> Platform:
    made(tmp_path)
    platform = Platform(tmp_path, tls_certificate="server.pem", tls_key="server.key")
    fill(platform)
    return platform


def trust(folder: Path, name: str = "server") -> ssl.SSLContext:
    return ssl.create_default_context(cafile=folder / f"{name}.pem")


def serial(host: str, port: int) -> int:
    """Of the certificate that a new connection gets."""
    return x509.load_pem_x509_certificate(ssl.get_server_certificate((host, port)).encode()).serial_number


def test_it_answers_over_tls_alone(secured, tmp_path):
    with served(secured, tmp_path / "server.log", scheme="https") as (host, port):
        with httpx.Client(base_url=f"https://{host}:{port}", verify=trust(tmp_path)) as http:
            answer = http.post(PATH, json=QUESTION, headers=bearer(secured.token()))
            assert answer.status_code == 200, answer.text
            again = http.post(PATH, json=QUESTION, headers=bearer(secured.token()))
            assert again.json() == answer.json()
            told = http.get("/.well-known/oauth-authorization-server").json()
            assert told["token_endpoint"] == f"https://{host}:{port}/oauth/token"
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://{host}:{port}/health")
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        with socket.create_connection((host, port)) as plain, pytest.raises((ssl.SSLError, OSError)):
            old.wrap_socket(plain)
    assert f"serving at=https://{host}" in (tmp_path / "server.log").read_text()
    secured.store.close()


def test_a_new_certificate_is_taken_up_and_a_wrong_one_is_not(secured, tmp_path):
    log = tmp_path / "server.log"
    with served(secured, log, scheme="https") as (host, port):
        before = serial(host, port)
        with httpx.Client(base_url=f"https://{host}:{port}", verify=trust(tmp_path)) as open_before:
            assert open_before.get("/health").status_code == 200
            made(tmp_path)
            os.kill(process_of(log), signal.SIGHUP)
            assert until(lambda: serial(host, port) != before)
            assert open_before.get("/health").status_code == 200
        second = serial(host, port)
        (tmp_path / "server.key").write_text("damaged")
        os.kill(process_of(log), signal.SIGHUP)
        assert until(lambda: "the former certificate is kept" in log.read_text())
        assert serial(host, port) == second
    secured.store.close()


def process_of(log: Path) -> int:
    return int(log.with_suffix(".pid").read_text())


def until(true: Callable[[], bool]) -> bool:
    for _ in range(4_000):
        if true():
            return True
        time.sleep(0.05)
    return False


class Client(threading.Thread):
    """Asks without pause, on connections that it keeps, and takes a new one when it is told that this was the last."""

    def __init__(self, url: str, token: str, ends: threading.Event, *, keeps: bool) -> None:
        super().__init__()
        self.url, self.token, self.ends, self.keeps = url, token, ends, keeps
        self.answered, self.failed = 0, []

    def run(self) -> None:
        while not self.ends.is_set():
            with httpx.Client(base_url=self.url) as http:
                while not self.ends.is_set():
                    try:
                        answer = http.post(PATH, json=QUESTION, headers=bearer(self.token), timeout=60)
                        if answer.status_code != 200:
                            self.failed.append(answer.text)
                    except httpx.HTTPError as error:
                        self.failed.append(repr(error))
                    self.answered += 1
                    time.sleep(0.001)
                    if not self.keeps:
                        break


@contextlib.contextmanager
def clients(url: str, token: str) -> Iterator[list[Client]]:
    ends = threading.Event()
    asking = [Client(url, token, ends, keeps=keeps) for keeps in (True, True, False)]
    for one in asking:
        one.start()
    try:
        yield asking
    finally:
        ends.set()
        for one in asking:
            one.join()


def workers_of(parent: int) -> set[int]:
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return {int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()}


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the workers below /proc")
def test_workers_are_replaced_and_no_request_fails(tmp_path):
    platform = Platform(tmp_path)
    fill(platform)
    log = tmp_path / "server.log"
    with (
        served(platform, log, workers=2) as (host, port),
        clients(f"http://{host}:{port}", platform.token()) as asking,
    ):
        parent = process_of(log)
        before = workers_of(parent)
        assert len(before) == 2
        os.kill(parent, signal.SIGHUP)
        assert until(lambda: len(workers_of(parent)) == 2 and not workers_of(parent) & before), log.read_text()
        counted = [one.answered for one in asking]
        assert until(lambda: all(one.answered > count + 5 for one, count in zip(asking, counted, strict=True)))
    assert [one.failed for one in asking] == [[], [], []]
    platform.store.close()
