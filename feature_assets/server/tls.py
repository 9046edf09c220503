"""TLS: the certificate and the key of the server, looked at before anybody connects."""

import logging
import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, NamedTuple, NoReturn

from cryptography import x509

from feature_assets.config import Settings
from feature_assets.errors import ConfigurationError

log = logging.getLogger(__name__)

_ENDS_SOON: Final = timedelta(days=14)


class Files(NamedTuple):
    """Where the certificate lies, with those between it and its root, and its key; both as PEM."""

    certificate: Path
    key: Path

    def context(self) -> ssl.SSLContext:
        """What connections are made with: TLS 1.2 or later.

        Raises:
            ConfigurationError: they cannot be read, do not belong together, or others may read the key.
        """
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.minimum_version = ssl.TLSVersion.TLSv1_2
        self.load_into(made)
        return made

    def load_into(self, context: ssl.SSLContext) -> None:
        """Use what lies there now for connections from now on. Raises as `context`."""
        _check_key(self.key)
        ends = _end_of(self.certificate)
        try:
            context.load_cert_chain(self.certificate, self.key, password=_refuse_to_ask)
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise ConfigurationError(
                    f"{self.key} is not the key of {self.certificate}. Name the two that belong together."
                ) from error
            raise ConfigurationError(
                f"{self.key} is no private key, or {self.certificate} no chain of certificates, in PEM."
            ) from error
        left = ends - datetime.now(UTC)
        if left < _ENDS_SOON:
            said = "has ended" if left < timedelta(0) else "ends soon"
            log.warning("the certificate %s at=%s file=%s", said, ends.isoformat(), self.certificate)


def files_of(settings: Settings) -> Files | None:
    """Those that the settings name; None without."""
    server = settings.server
    if server.tls_certificate is None or server.tls_key is None:
        return None
    return Files(Path(settings.place(server.tls_certificate)), Path(settings.place(server.tls_key)))


def _check_key(path: Path) -> None:
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o007:
            raise ConfigurationError(f"Everybody may read {path}, the key for TLS. Run: chmod 640 {path}")
        path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"server.tls_key: {path} cannot be read: {error.strerror}.") from error


def _end_of(path: Path) -> datetime:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes()).not_valid_after_utc
    except OSError as error:
        raise ConfigurationError(f"server.tls_certificate: {path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise ConfigurationError(f"server.tls_certificate: {path} is no certificate in PEM.") from error


def _refuse_to_ask() -> NoReturn:
    # OpenSSL would ask at the terminal, and a server has none.
    raise ConfigurationError(
        "server.tls_key is encrypted. Name a key without a password, which its file's mode protects."
    )
