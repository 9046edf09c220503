"""Credentials of the profiles that the AWS command line uses, for clients of S3 that do not look there.

The object-store libraries find what is in the environment and what a task or a machine on AWS is given, and renew it. Of
`~/.aws` they know nothing: profiles, single sign-on, roles to assume, programs that print credentials.
"""

import os
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from feature_assets.errors import ConfigurationError

_NAMES: Final = ("access_key_id", "secret_access_key", "session_token", "token", "skip_signature", "no_sign_request")
_FOUND_BY_THE_LIBRARIES: Final = (
    "AWS_ACCESS_KEY_ID",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)
_OF_THE_MACHINE: Final = frozenset({"iam-role", "container-role", "env"})
_FILES: Final = {"AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials", "AWS_CONFIG_FILE": "~/.aws/config"}


def with_profile(options: Mapping[str, str], places: Iterable[str]) -> dict[str, str]:
    """The options of the object store, with the credentials and the region of the profile in use where S3 needs them.

    Args:
        options: what was given; credentials in it count, and those of the environment.
        places: where things are kept.

    Raises:
        ConfigurationError: there is no such profile, or its credentials cannot be had, as after a sign-on has run out.
    """
    given = dict(options)
    if not any(place.startswith(("s3://", "s3a://")) for place in places) or _are_given(given):
        return given
    files = [Path(os.environ.get(name, usual)).expanduser() for name, usual in _FILES.items()]
    if "AWS_PROFILE" not in os.environ and not any(file.is_file() for file in files):
        return given
    return {**_of_profile(os.environ.get("AWS_PROFILE"), *map(str, files)), **given}


def _are_given(options: Mapping[str, str]) -> bool:
    names = {name.lower().removeprefix("aws_") for name in options}
    return not names.isdisjoint(_NAMES) or any(name in os.environ for name in _FOUND_BY_THE_LIBRARIES)


def _of_profile(profile: str | None, *files: str) -> dict[str, str]:
    from botocore.exceptions import BotoCoreError

    called = f"profile '{profile}'" if profile else "the default profile"
    try:
        session, credentials = _session(profile, *files)
        if credentials is None or credentials.method in _OF_THE_MACHINE:
            return {}
        # Renewed here where they are about to run out; a store that is open keeps those that it was opened with.
        frozen = credentials.get_frozen_credentials()
    except BotoCoreError as error:
        raise ConfigurationError(
            f"S3 cannot be used with {called} of AWS: {error} See that `aws sts get-caller-identity` works."
        ) from error
    found = {
        "aws_access_key_id": frozen.access_key,
        "aws_secret_access_key": frozen.secret_key,
        "aws_session_token": frozen.token,
        "aws_region": session.get_config_variable("region"),
    }
    return {name: value for name, value in found.items() if value}


@lru_cache(maxsize=8)
def _session(profile: str | None, *files: str) -> tuple[Any, Any]:
    from botocore.session import Session

    session = Session(profile=profile)
    return session, session.get_credentials()
