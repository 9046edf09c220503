"""The embedded issuer's requests and answers."""

from typing import Final

from pydantic import BaseModel, Field


class TokenForm(BaseModel):
    """A request for a token; the client's id and secret stand here or in the Authorization header (Basic)."""

    grant_type: str = Field(description="`client_credentials`")
    scope: str | None = Field(
        None, description="The scopes wanted, with spaces between them; all of the client's if left out."
    )
    client_id: str | None = None
    client_secret: str | None = None


class TokenAnswer(BaseModel):
    """An access token (RFC 6749)."""

    access_token: str
    token_type: str
    expires_in: int = Field(description="Seconds.")
    scope: str


class TokenError(BaseModel):
    """Why there is no token (RFC 6749)."""

    error: str
    error_description: str


TOKEN_FORM: Final = {
    "required": True,
    "content": {"application/x-www-form-urlencoded": {"schema": TokenForm.model_json_schema()}},
}
