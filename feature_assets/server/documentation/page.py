"""The OpenAPI page. Served on loopback only.

The page and all that it loads come from this server, so that it works without a network and under a content security
policy that lets nothing else in.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Final

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response

from feature_assets.errors import ConfigurationError

DESCRIPTION: Final = """\
The latest values of features, for model services. It speaks the JSON of Feast's feature server where Feast has the route.

Every route but `/health` and the metadata below `/.well-known/` needs an access token, sent as
`Authorization: Bearer …`. What a token may read follows from its scopes: `features:read` covers all views,
`features:read:driver_stats` one, `features:read:driver_*` those whose names start so. Views can ask for more: that a
policy names one of the token's roles, groups or its client, and that join keys equal a claim of it. Refusals are
[problem documents](https://www.rfc-editor.org/rfc/rfc9457).
"""


_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


_PAGE: Final = """\
<!doctype html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <meta name="viewport" content="width=device-width, initial-scale=1">
  <title>Feature Assets</title>
  <link rel="icon" href="data:,">
  <link rel="stylesheet" href="/docs/swagger-ui.css">
</head>
<body>
  <div id="page"></div>
  <script src="/docs/swagger-ui-bundle.js"></script>
  <script src="/docs/start.js"></script>
</body>
</html>
"""


_START: Final = """\
SwaggerUIBundle({
  url: "/openapi.json",
  dom_id: "#page",
  deepLinking: true,
  docExpansion: "list",
  defaultModelsExpandDepth: 0,
  tryItOutEnabled: true,
  validatorUrl: null,
  presets: [SwaggerUIBundle.presets.apis],
});
"""


def serve_page(app: FastAPI) -> None:
    """Add the page at /docs."""
    assets = _assets()
    headers = {
        "content-security-policy": _POLICY,
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
    }

    async def page(_: Request) -> Response:
        return HTMLResponse(_PAGE, headers=headers)

    async def start(_: Request) -> Response:
        return Response(_START, media_type="text/javascript", headers=headers)

    async def style(_: Request) -> Response:
        return FileResponse(assets / "swagger-ui.css", media_type="text/css", headers=headers)

    async def script(_: Request) -> Response:
        return FileResponse(assets / "swagger-ui-bundle.js", media_type="text/javascript", headers=headers)

    app.add_route("/docs", page, methods=["GET"], include_in_schema=False)
    app.add_route("/docs/start.js", start, methods=["GET"], include_in_schema=False)
    app.add_route("/docs/swagger-ui.css", style, methods=["GET"], include_in_schema=False)
    app.add_route("/docs/swagger-ui-bundle.js", script, methods=["GET"], include_in_schema=False)


def _assets() -> Path:
    """The folder with Swagger UI. The package that ships it is not imported: it would bring an application of its own."""
    found = find_spec("fastapi_offline")
    if found is None or found.origin is None:
        raise ConfigurationError(
            "The package fastapi-offline, which has the files of the OpenAPI page, is not installed. "
            "Install it: pip install fastapi-offline"
        )
    return Path(found.origin).with_name("static")
