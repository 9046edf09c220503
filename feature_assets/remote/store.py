"""`FeatureStore.remote`: the questions of a `FeatureStore`, put to a feature server."""

from collections.abc import Mapping
from datetime import datetime
from functools import partial
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

import httpx

from feature_assets.errors import RequestError
from feature_assets.lookup import EntityRows, OnlineResponse
from feature_assets.references import Features
from feature_assets.registry import Registry
from feature_assets.registry.snapshot import read_registry
from feature_assets.remote import answers, pushes
from feature_assets.remote.connection import Connection
from feature_assets.remote.pushes import RemotePushed
from feature_assets.remote.tokens import Tokens, TokenSource, check_secured
from feature_assets.spec import ViewProjection

if TYPE_CHECKING:
    from feature_assets.historical.spine import Frame
    from feature_assets.remote.histories import File
    from feature_assets.training import TrainingSet

_ONLINE: Final = "/get-online-features"
_REGISTRY: Final = "/v1/registry"
_JSON: Final = {"content-type": "application/json"}


class RemoteFeatureStore:
    """A feature server as a `FeatureStore`: the same questions, answers and errors, and the same pushes.

    Safe to share between threads, and between the coroutines of one event loop. A request is tried again, with growing
    pauses, while the server is busy or cannot be reached, until `deadline`.
    """

    def __init__(
        self,
        url: str,
        *,
        token: TokenSource | None = None,
        client_id: str | None = None,
        client_secret: str | None = None,
        scope: str | None = None,
        token_parameters: Mapping[str, str] = MappingProxyType({}),
        timeout: float = 30.0,
        deadline: float = 30.0,
        connections: int = 20,
        verify: Any = True,
        allow_http: bool = False,
    ) -> None:
        """Nothing is asked before the first question.

        Args:
            url: where the server is: `https://features.example.com`.
            token: an access token, or a function that gives one each time.
            client_id, client_secret: instead of a token: tokens are got from the issuer that the server names, and renewed.
            scope: what to ask the issuer for; all that the client may have if left out.
            token_parameters: more that the issuer wants in a request for a token, as `{"resource": "features"}`.
            timeout: seconds to wait for a connection, and for each part of an answer.
            deadline: seconds for a question with all its attempts; an answer that has begun may take longer.
            connections: how many at once.
            verify: what httpx takes: an `ssl.SSLContext` for an authority of one's own.
            allow_http: send tokens without TLS to other machines.

        Raises:
            ConfigurationError: the URL is not HTTPS and not on this machine, or it is not clear where tokens come from.
        """
        self.url = url.rstrip("/")
        check_secured(self.url, allow_http=allow_http)
        tokens = Tokens(self.url, token, client_id, client_secret, scope, token_parameters, allow_http=allow_http)
        self._connection = Connection(
            self.url, tokens, timeout=timeout, deadline=deadline, connections=connections, verify=verify
        )
        self._registry: tuple[str, Registry] | None = None

    def get_online_features(
        self, features: Features, entity_rows: EntityRows = None, *, full_feature_names: bool = False
    ) -> OnlineResponse:
        """See `FeatureStore.get_online_features`."""
        columns = answers.columns_of(entity_rows)
        body = answers.question(features, columns, full_feature_names=full_feature_names)
        return answers.response(
            self._connection.ask(self._posted(_ONLINE, content=body, headers=_JSON)).content, columns
        )

    async def get_online_features_async(
        self, features: Features, entity_rows: EntityRows = None, *, full_feature_names: bool = False
    ) -> OnlineResponse:
        """See `FeatureStore.get_online_features_async`."""
        columns = answers.columns_of(entity_rows)
        body = answers.question(features, columns, full_feature_names=full_feature_names)
        answer = await self._connection.ask_async(self._posted(_ONLINE, content=body, headers=_JSON))
        return answers.response(answer.content, columns)

    def get_historical_features(
        self,
        spine: "Frame | None" = None,
        features: Features = (),
        *,
        full_feature_names: bool = False,
        created_cutoff: bool = True,
        since: datetime | str | None = None,
        until: datetime | str | None = None,
        timestamp_column: str | None = None,
        tables: "Mapping[str, Frame] | None" = None,
        engine: str = "polars",
    ) -> "TrainingSet":
        """See `FeatureStore.get_historical_features`. The server computes the rows, and they are all here when it returns.

        A path or a query is read on this machine, so that a query can name `tables` and no views.

        Raises:
            RequestError: the question cannot be answered as it was asked.
            UnknownView, UnknownFeature, UnknownService: the registry has nothing of that name.
            Forbidden: the token does not allow it.
        """
        from feature_assets.remote import histories

        sent = self._history(spine, tables, engine)
        body = histories.question(
            features,
            full_feature_names=full_feature_names,
            created_cutoff=created_cutoff,
            since=since,
            until=until,
            timestamp_column=timestamp_column,
        )
        received = histories.File()

        def take(answer: httpx.Response) -> None:
            with received.path.open("wb") as rows:
                rows.writelines(answer.iter_bytes())

        self._connection.ask(self._uploaded(body, sent), take)
        return histories.training_set(received)

    async def get_historical_features_async(
        self,
        spine: "Frame | None" = None,
        features: Features = (),
        *,
        full_feature_names: bool = False,
        created_cutoff: bool = True,
        since: datetime | str | None = None,
        until: datetime | str | None = None,
        timestamp_column: str | None = None,
        tables: "Mapping[str, Frame] | None" = None,
        engine: str = "polars",
    ) -> "TrainingSet":
        """`get_historical_features` beside other coroutines."""
        from feature_assets.remote import histories

        sent = self._history(spine, tables, engine)
        body = histories.question(
            features,
            full_feature_names=full_feature_names,
            created_cutoff=created_cutoff,
            since=since,
            until=until,
            timestamp_column=timestamp_column,
        )
        received = histories.File()

        def take(answer: httpx.Response, piece: bytes) -> None:
            with received.path.open("ab" if piece else "wb") as rows:
                rows.write(piece)

        await self._connection.ask_async(self._uploaded(body, sent), take)
        return histories.training_set(received)

    def push(
        self, source: str, rows: Any, *, to: str = "online_and_offline", event_id: str | None = None
    ) -> RemotePushed:
        """See `FeatureStore.push`. A push whose answer is lost is sent again, which changes nothing.

        Rows go as JSON: a value that has none, or that would lose something, is refused before it is sent.
        """
        body = pushes.push_question(source, rows, to=to, event_id=event_id)
        return self._pushed(self._connection.ask(self._posted(pushes.PATH, content=body, headers=_JSON)))

    async def push_async(
        self, source: str, rows: Any, *, to: str = "online_and_offline", event_id: str | None = None
    ) -> RemotePushed:
        """`push` beside other coroutines."""
        body = pushes.push_question(source, rows, to=to, event_id=event_id)
        return self._pushed(await self._connection.ask_async(self._posted(pushes.PATH, content=body, headers=_JSON)))

    def write_to_online_store(self, feature_view_name: str, rows: Any, *, event_id: str | None = None) -> RemotePushed:
        """See `FeatureStore.write_to_online_store`."""
        body = pushes.write_question(feature_view_name, rows, event_id=event_id)
        return self._pushed(self._connection.ask(self._posted(pushes.WRITE_PATH, content=body, headers=_JSON)))

    async def write_to_online_store_async(
        self, feature_view_name: str, rows: Any, *, event_id: str | None = None
    ) -> RemotePushed:
        """`write_to_online_store` beside other coroutines."""
        body = pushes.write_question(feature_view_name, rows, event_id=event_id)
        answer = await self._connection.ask_async(self._posted(pushes.WRITE_PATH, content=body, headers=_JSON))
        return self._pushed(answer)

    def _pushed(self, answer: httpx.Response) -> RemotePushed:
        return pushes.pushed(answer.content, self._published)

    def _published(self, asked: Mapping[str, Any]) -> bool:
        build = partial(
            self._connection.client.build_request, "GET", f"{self.url}{pushes.PUBLISHED_PATH}", params=asked
        )
        return pushes.published(self._connection.ask(build).content)

    @staticmethod
    def _history(spine: "Frame | None", tables: "Mapping[str, Frame] | None", engine: str) -> "File | None":
        from feature_assets.remote import histories

        if engine != "polars":
            raise RequestError(f"What joins is the server's choice: engine='{engine}' cannot be asked of it.")
        return None if spine is None else histories.brought(spine, tables or {})

    def _uploaded(self, body: bytes, file: "File | None") -> "partial[httpx.Request]":
        from feature_assets.remote import histories

        # The file is opened anew for each attempt.
        return partial(self._request_with_file, histories.PATH, body, file)

    def _request_with_file(self, path: str, body: bytes, file: "File | None") -> httpx.Request:
        from feature_assets.remote import histories

        return self._connection.client.build_request("POST", f"{self.url}{path}", **histories.form(body, file))

    def _posted(self, path: str, **options: Any) -> "partial[httpx.Request]":
        return partial(self._connection.client.build_request, "POST", f"{self.url}{path}", **options)

    @property
    def registry(self) -> Registry:
        """The registry that the server has in force, as far as the token may know it. It is read once; see `refresh`.

        Raises:
            NotPublished: there is none yet.
            Forbidden: the token lacks the scope registry:read.
        """
        if self._registry is None:
            self.refresh()
        assert self._registry is not None  # noqa: S101 (it was read just now)
        return self._registry[1]

    def refresh(self) -> bool:
        """Take up what was published since; whether there was anything. Raises as `registry` does."""
        headers = {} if self._registry is None else {"if-none-match": self._registry[0]}
        build = partial(self._connection.client.build_request, "GET", f"{self.url}{_REGISTRY}", headers=headers)
        answer = self._connection.ask(build)
        if answer.status_code == 304:
            return False
        self._registry = (answer.headers.get("etag", ""), read_registry(answer.content, f"{self.url}{_REGISTRY}"))
        return True

    def view(self, name: str, version: int | None = None) -> ViewProjection:
        """See `FeatureStore.view`."""
        if name in self.registry.on_demand and version is None:
            return ViewProjection(name)
        return ViewProjection(self.registry.view(name, version).name, version=version)

    def service(self, name: str) -> tuple[ViewProjection, ...]:
        """See `FeatureStore.service`."""
        return self.registry.service(name).features

    def close(self) -> None:
        """Let go of the connections; in a program with coroutines see `aclose`."""
        self._connection.close()

    async def aclose(self) -> None:
        """Let go of all connections."""
        await self._connection.close_async()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __repr__(self) -> str:
        return f"FeatureStore.remote({self.url!r})"
