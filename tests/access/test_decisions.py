"""Who may do what: every decision against a model that a child could check, and what follows from it for the stores."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_assets.access import (
    HISTORY,
    KNOW,
    MATERIALIZE,
    PUBLISH,
    PUSH,
    READ,
    SEE_PII,
    Access,
    Decision,
    Grant,
    Principal,
    in_general,
    parse_scope,
)
from feature_assets.errors import Forbidden, UnknownService, UnknownView
from feature_assets.lookup import OnlineLookup
from feature_assets.online import open_online_store
from feature_assets.registry import Registry
from feature_assets.spec import PUBLICATION, Entity, Field, OnDemandViewSpec, ServiceSpec, ViewProjection, ViewSpec
from feature_assets.transformations import declared_expressions
from feature_assets.types import UUID, Bool, Int64, String
from tests.access.counting import READS, Counting

NOON = datetime(2013, 2, 8, 12, tzinfo=UTC)
TENANT = Entity("tenant", {"tenant": String, "item": Int64})


def view(name: str, *features: Field, entity: Entity = TENANT, **more: Any) -> ViewSpec:
    return ViewSpec(name=name, entities=(entity,), event_timestamp="at", features=features or VALUE, **more)


def on_demand(name: str, *sources: str, **more: Any) -> OnDemandViewSpec:
    return OnDemandViewSpec(
        name=name,
        sources=tuple(ViewProjection(source) for source in sources),
        full_feature_names=True,
        features=(Field(f"{name}_sum", Int64),),
        transformation=declared_expressions(name, {f"{name}_sum": pl.lit(1, pl.Int64)}),
        **more,
    )


VALUE = (Field("value", Int64),)


def principal(scopes: str, **more: Any) -> Principal:
    return Principal.of("tester", scopes, **more)


def refused(decision: Decision) -> Forbidden:
    with pytest.raises(Forbidden) as caught:
        decision.enforce()
    assert caught.value.decision is decision
    return caught.value


# Scopes.


@pytest.mark.parametrize(
    ("scope", "allowed"),
    [
        ("features:read", True),
        ("features:read:orders", True),
        ("features:read:ord*", True),
        ("features:read:*", True),
        ("features:read:order", False),
        ("features:read:orders_7d", False),
        ("features:history", False),
        ("admin", False),
        ("features:push:orders", False),
    ],
)
def test_a_scope_covers_an_act_on_views_of_a_name(scope: str, *, allowed: bool) -> None:
    access = Access(Registry.of([view("orders")]))
    found = access.decide(principal(scope), READ, "orders")
    assert found.allowed == allowed
    assert found.rule == (f"scope {scope}" if allowed else "no scope features:read")


def test_what_concerns_all_views_needs_the_scope_for_all_of_them() -> None:
    access = Access(Registry.of([view("orders")]))
    assert access.decide(principal("registry:write"), PUBLISH).allowed
    found = access.decide(principal("registry:write:orders"), PUBLISH)
    assert "You need the scope registry:write for this, for all views." in str(refused(found))
    assert in_general(principal("registry:write:orders"), PUBLISH).allowed
    assert not in_general(principal("registry:read"), PUBLISH).allowed


# Policies.

RISK = view("orders", access={"read": ["role:risk_*", "client:scorer"], "push": ["subject:user-1"], "pii": []})


@pytest.mark.parametrize(
    ("act", "who", "rule"),
    [
        (READ, {"roles": ["risk_eu"]}, "scope features:read; read policy of orders: role:risk_*"),
        (READ, {"roles": ["risk_"]}, "scope features:read; read policy of orders: role:risk_*"),
        (READ, {"roles": ["risk", "a_risk_eu"]}, None),
        (READ, {"groups": ["risk_eu"]}, None),
        (READ, {}, None),
        (HISTORY, {"roles": ["risk_eu"]}, "scope features:history; read policy of orders: role:risk_*"),
        (PUSH, {"subject": "user-1"}, "scope features:push; push policy of orders: subject:user-1"),
        (PUSH, {"roles": ["risk_eu"]}, None),
        (PUSH, {"subject": "user-10"}, None),
        (MATERIALIZE, {"roles": ["risk_eu"]}, None),
    ],
)
def test_a_policy_names_who_may(act: str, who: dict[str, Any], rule: str | None) -> None:
    found = Access(Registry.of([RISK])).decide(principal(f"{act} registry:read", **who), act, "orders")
    assert found.allowed == (rule is not None)
    if rule is not None:
        assert found.rule == rule
        return
    told = str(refused(found))
    assert "the policy of 'orders' names" in told
    assert not found.hidden
    assert not found.lacks


def test_a_client_is_named_by_its_id() -> None:
    access = Access(Registry.of([RISK]))
    assert access.decide(Principal.of("scorer", "features:read"), READ, "orders").allowed
    assert not access.decide(Principal.of("scorer-2", "features:read"), READ, "orders").allowed


def test_who_is_not_told_of_a_policy_learns_nothing_of_it() -> None:
    """Unknown, not allowed by scope and not allowed by policy: one answer to who may not know the registry."""
    access = Access(Registry.of([RISK, view("invoices")]))
    answers = [
        str(refused(access.decide(principal(scopes), READ, name))).replace(name, "…")
        for scopes, name in (
            ("features:read", "orders"),
            ("features:read:orders", "invoices"),
            ("features:read", "nothing"),
            ("features:read registry:read:invoices", "nothing"),
        )
    ]
    assert len(set(answers)) == 1
    rules = [
        access.decide(principal("features:read"), READ, name).rule for name in ("orders", "nothing")
    ]  # The audit log knows better.
    assert rules == ["read policy of orders names client:scorer, role:risk_*", "no such feature view"]
    with pytest.raises(UnknownView, match="Did you mean 'invoices'"):
        access.decide(principal("features:read registry:read"), READ, "invoice")


def test_a_service_needs_all_of_its_views() -> None:
    registry = Registry.of(
        [
            RISK,
            view("invoices"),
            ServiceSpec(name="model", features=(ViewProjection("invoices"), ViewProjection("orders"))),
        ]
    )
    access = Access(registry)
    asks = principal("features:read registry:read")
    with pytest.raises(Forbidden, match=r"You may not read the feature service 'model': the policy of 'orders' names"):
        access.reading(asks, READ, "model")
    with pytest.raises(
        Forbidden, match=r"the feature service 'model': a policy does not name you. Ask whoever owns it"
    ):
        access.reading(principal("features:read registry:read:model"), READ, "model")
    with pytest.raises(Forbidden, match=r"Ask for a token with: features:read:orders$"):
        access.reading(principal("features:read:invoices registry:read"), READ, "model")
    with pytest.raises(UnknownService, match="model"):
        access.reading(asks, READ, "models")
    with pytest.raises(Forbidden, match=r"There is no feature service 'models', or you may not read it"):
        access.reading(principal("features:read"), READ, "models")
    named = principal("features:read", roles=["risk_eu"])
    assert access.reading(named, READ, "model", full_feature_names=True).decide(named).views == ("invoices", "orders")


def test_an_on_demand_view_needs_its_sources_and_what_it_asks_for_itself() -> None:
    registry = Registry.of(
        [RISK, on_demand("total", "orders", access={"read": ["group:sales"]}), on_demand("twice", "total")]
    )
    access = Access(registry)
    for who, allowed in (
        ({"roles": ["risk_eu"], "groups": ["sales"]}, True),
        ({"roles": ["risk_eu"]}, False),
        ({"groups": ["sales"]}, False),
    ):
        asks = principal("features:read registry:read", **who)
        reading = access.reading(None, READ, ["twice:twice_sum"])
        assert reading.decide(asks).allowed == allowed
        if not allowed:
            with pytest.raises(Forbidden):
                access.reading(asks, READ, ["twice:twice_sum"])


def test_the_policy_of_the_current_version_is_that_of_all_its_versions() -> None:
    """Nobody's code stands for the former ones: what was open once is not open for ever."""
    former = view("orders", Field("value", Int64), Field("phone", String))
    current = view(
        "orders",
        Field("value", Int64),
        Field("phone", String, pii="phone"),
        version=2,
        access={"read": ["role:risk"], "pii": ["role:dpo"]},
        row_filter={"tenant": "tenant"},
    )
    registry = Registry(views={"orders": current}, superseded={"orders@v1": former})
    access = Access(registry)
    with pytest.raises(Forbidden):
        access.reading(principal("features:read registry:read"), READ, ["orders@v1:value"])
    asks = principal("features:read pii:read", roles=["risk"], claims={"tenant": "acme"})
    decision = access.reading(asks, READ, ["orders@v1:phone"]).decide(asks)
    assert (decision.masked, [rule.value for rule in decision.rows]) == ({"phone"}, ["acme"])


def test_a_former_version_without_the_key_that_rows_are_told_apart_by_is_open_to_nobody() -> None:
    current = view("orders", version=2, row_filter={"tenant": "tenant"})
    former = view("orders", entity=Entity("item", {"item": Int64}))
    access = Access(Registry(views={"orders": current}, superseded={"orders@v1": former}))
    asks = principal("features:read", claims={"tenant": "acme"})
    with pytest.raises(Forbidden, match=r"This version of view 'orders' lacks the join key"):
        access.reading(asks, READ, ["orders@v1:value"]).decide(asks).enforce()


# Personal data.

CONTACTS = view("contacts", Field("value", Int64), Field("phone", String, pii="phone"))


@pytest.mark.parametrize(
    ("scopes", "policy", "roles", "masked"),
    [
        ("features:read", None, [], True),
        ("features:read pii:read", None, [], False),
        ("features:read pii:read:contacts", None, [], False),
        ("features:read pii:read:orders", None, [], True),
        ("features:read pii:read", {"read": ["subject:*"], "pii": ["role:dpo"]}, [], True),
        ("features:read pii:read", {"read": ["subject:*"], "pii": ["role:dpo"]}, ["dpo"], False),
        ("features:read", {"read": ["subject:*"], "pii": ["role:dpo"]}, ["dpo"], True),
        ("features:read pii:read", {"read": ["subject:*"]}, ["dpo"], True),
    ],
)
def test_personal_data_needs_scope_and_policy(scopes: str, policy: Any, roles: Sequence[str], *, masked: bool) -> None:
    contacts = view("contacts", *CONTACTS.features, access=policy)
    access = Access(Registry.of([contacts, on_demand("dial", "contacts"), on_demand("redial", "dial")]))
    asks = principal(scopes, roles=roles)
    features = ["contacts:phone", "contacts:value", "dial:dial_sum", "redial:redial_sum"]
    found = access.reading(asks, READ, features).decide(asks)
    # What is computed from personal data is personal, by however many steps.
    assert found.masked == ({"phone", "dial_sum", "redial_sum"} if masked else set())
    assert found.allowed


def test_what_is_masked_is_left_out_of_what_is_asked_for() -> None:
    access = Access(Registry.of([CONTACTS, on_demand("dial", "contacts")]))
    asks = principal("features:history")
    asked = [ViewProjection("contacts"), ViewProjection("contacts", ("phone",), alias="other"), ViewProjection("dial")]
    reading = access.reading(asks, HISTORY, asked, full_feature_names=True)
    decision = reading.decide(asks)
    assert reading.visible(asked, decision) == [ViewProjection("contacts", ("value",))]


# Rows.


@pytest.mark.parametrize(
    ("of", "claim", "own"),
    [
        (String, "acme", "acme"),
        (String, 7, None),
        (String, None, None),
        (Int64, 7, 7),
        (Int64, "7", 7),
        (Int64, "7.5", None),
        (Int64, True, None),
        (Int64, 2**63, None),
        (Bool, True, True),
        (Bool, 1, None),
        (UUID, "550E8400-E29B-41D4-A716-446655440000", "550e8400-e29b-41d4-a716-446655440000"),
        (UUID, "acme", None),
    ],
    ids=str,
)
def test_a_claim_is_compared_in_the_type_of_the_key(of: Any, claim: Any, own: Any) -> None:
    orders = view("orders", entity=Entity("tenant", {"tenant": of}), row_filter={"tenant": "org.tenant"})
    access = Access(Registry.of([orders]))
    asks = principal("features:read", claims={} if claim is None else {"org.tenant": claim})
    decision = access.reading(asks, READ, ["orders:value"]).decide(asks)
    if own is None:
        assert "open for one's own 'tenant' alone" in str(refused(decision))
        assert decision.rule == "row filter of orders on tenant"
    else:
        assert [(rule.column, rule.value) for rule in decision.rows] == [("tenant", own)]


def test_rows_are_looked_at_by_the_column_that_holds_the_key() -> None:
    orders = view("orders", row_filter={"tenant": "tenant"})
    access = Access(Registry.of([orders]))
    asks = principal("features:read", claims={"tenant": "acme"})
    both = [ViewProjection("orders"), ViewProjection("orders", alias="theirs", join_key_map={"tenant": "other"})]
    decision = access.reading(asks, READ, both, full_feature_names=True).decide(asks)
    assert {rule.column for rule in decision.rows} == {"tenant", "other"}
    columns = {"tenant": ["acme", "acme"], "other": ["acme", "globex"]}
    with pytest.raises(Forbidden, match="another 'other' than yours") as caught:
        decision.admit(columns.__getitem__)
    assert "globex" not in str(caught.value)
    assert not caught.value.decision.allowed
    decision.admit({"tenant": ["acme"], "other": ["acme"]}.__getitem__)


def test_pushed_rows_are_looked_at_by_their_join_keys() -> None:
    access = Access(Registry.of([view("orders", row_filter={"tenant": "tenant"})]))
    decision = access.decide(principal("features:push", claims={"tenant": "acme"}), PUSH, "orders").enforce()
    with pytest.raises(Forbidden):
        decision.admit({"tenant": ["acme", "globex"], "item": [1, 2]}.__getitem__)
    assert not access.decide(principal("features:push"), PUSH, "orders").allowed


# Against a model.

NAMES = ("orders", "orders_7d", "contacts", "total")
ROLES = ("risk", "risk_eu", "dpo", "sales")
PATTERNS = ("role:risk", "role:risk*", "role:dpo", "group:sales", "client:tester", "client:other", "subject:*")
SCOPES = tuple(
    f"{act}{narrowed}"
    for act in (READ, HISTORY, PUSH, MATERIALIZE, SEE_PII, KNOW)
    for narrowed in ("", ":orders", ":orders*", ":contacts", ":total", ":*")
)
ACTS_OF_POLICY = {READ: "read", HISTORY: "read", PUSH: "push", MATERIALIZE: "materialize", SEE_PII: "pii"}

policies = st.none() | st.dictionaries(
    st.sampled_from(["read", "push", "materialize", "pii"]), st.lists(st.sampled_from(PATTERNS)), min_size=1
)
on_demand_policies = st.none() | st.dictionaries(
    st.sampled_from(["read", "pii"]), st.lists(st.sampled_from(PATTERNS)), min_size=1
)


class Asking(NamedTuple):
    """A principal in the model: nothing compiled."""

    scopes: frozenset[str]
    roles: frozenset[str]
    groups: frozenset[str]
    claims: Mapping[str, str]

    @property
    def principal(self) -> Principal:
        grant = Grant(scope for text in sorted(self.scopes) if (scope := parse_scope(text)) is not None)
        return Principal("issuer", "tester", "tester", grant, 0, self.roles, self.groups, self.claims)


# Who has any scopes and roles, and who has them all: of the former hardly one is allowed anything.
of_tenants = st.sampled_from([{"tenant": "acme"}, {"tenant": "acme"}, {"tenant": "globex"}, {}])
entitled = st.builds(
    Asking,
    st.just(frozenset({*ACTS_OF_POLICY, KNOW})),
    st.just(frozenset(ROLES)),
    st.just(frozenset(ROLES)),
    of_tenants,
)
askings = entitled | st.builds(
    Asking,
    st.frozensets(st.sampled_from(SCOPES), max_size=8),
    st.frozensets(st.sampled_from(ROLES)),
    st.frozensets(st.sampled_from(ROLES)),
    of_tenants,
)


@st.composite
def registries(draw: st.DrawFn) -> Registry:
    filters = st.sampled_from([{}, {"tenant": "tenant"}])
    pii = st.sampled_from([None, "phone"])
    views = [
        view(name, Field(f"{name}_value", Int64, pii=draw(pii)), access=draw(policies), row_filter=draw(filters))
        for name in NAMES[:3]
    ]
    sources = draw(st.lists(st.sampled_from(NAMES[:3]), min_size=1, unique=True))
    return Registry.of([*views, on_demand("total", *sources, access=draw(on_demand_policies))])


def model_scope(asking: Asking, act: str, view: str) -> bool:
    for scope in asking.scopes:
        if scope.startswith(act):
            narrowed = scope[len(act) :]
            if narrowed in ("", f":{view}") or (narrowed.endswith("*") and view.startswith(narrowed[1:-1])):
                return True
    return False


def model_policy(access: Any, asking: Asking, act: str) -> bool:
    if access is None:
        return True
    called = {"client:tester", "subject:tester", *(f"role:{one}" for one in asking.roles)}
    called |= {f"group:{one}" for one in asking.groups}
    for pattern in access.get(ACTS_OF_POLICY[act], ()):
        for name in called:
            if name == pattern or (pattern[-1] == "*" and name.startswith(pattern[:-1])):
                return True
    return False


def model(registry: Registry, asking: Asking, act: str, names: Iterable[str]) -> tuple[bool, set[str]]:
    """Whether the features of these views are answered, and which are masked; rows left aside."""
    touched, pii = set(names), {}
    for name in names:
        if name in registry.on_demand:
            touched |= {source.view for source in registry.on_demand[name].sources}
    declared = {**registry.views, **registry.on_demand}
    allowed = all(
        model_scope(asking, act, name) and model_policy(declared[name].access, asking, act) for name in touched
    )
    filtered = any(registry.views[name].row_filter for name in touched if name in registry.views)
    if filtered and "tenant" not in asking.claims:
        allowed = False
    for name, spec in registry.views.items():
        pii[name] = {name} if spec.features[0].pii else set()
    for name, made in registry.on_demand.items():
        pii[name] = set().union(*(pii[source.view] for source in made.sources))
        if pii[name] and made.access is not None:
            pii[name] |= {name}
    masked = {
        name
        for name in names
        if not all(
            model_scope(asking, SEE_PII, one) and model_policy(declared[one].access, asking, SEE_PII)
            for one in pii[name]
        )
    }
    return allowed, masked if allowed else set()


asked_views = st.lists(st.sampled_from(NAMES), min_size=1, unique=True)


@settings(max_examples=150)
@given(registry=registries(), asking=askings, names=asked_views, act=st.sampled_from([READ, HISTORY]))
def test_a_reading_is_decided_as_the_model_says(registry: Registry, asking: Asking, names: list[str], act: str) -> None:
    found = reading(registry, names, act).decide(asking.principal)
    allowed, masked = model(registry, asking, act, names)
    assert (found.allowed, {one.partition("__")[0] for one in found.masked}) == (allowed, masked)
    assert found.rule
    # The same question, asked from the start, is refused alike.
    try:
        Access(registry).reading(asking.principal, act, references(names), full_feature_names=True).decide(
            asking.principal
        ).enforce()
    except (Forbidden, UnknownView):
        assert not allowed
    else:
        assert allowed


@settings(max_examples=150)
@given(
    registry=registries(),
    asking=askings,
    names=asked_views,
    act=st.sampled_from([READ, HISTORY, PUSH, MATERIALIZE]),
    data=st.data(),
)
def test_who_has_less_is_never_allowed_more(
    registry: Registry, asking: Asking, names: list[str], act: str, data: st.DataObject
) -> None:
    """Fewer scopes, narrower ones, fewer roles, groups or claims."""
    kept = data.draw(st.frozensets(st.sampled_from(sorted(asking.scopes))) if asking.scopes else st.just(frozenset()))
    narrowed = frozenset(
        f"{scope}:{data.draw(st.sampled_from(NAMES))}"
        if scope in ACTS_OF_POLICY and data.draw(st.booleans())
        else scope
        for scope in kept
    )
    less = Asking(
        narrowed,
        asking.roles - data.draw(st.frozensets(st.sampled_from(ROLES))),
        asking.groups - data.draw(st.frozensets(st.sampled_from(ROLES))),
        data.draw(st.sampled_from([{}, asking.claims])),
    )
    if act in (READ, HISTORY):
        compiled = reading(registry, names, act)
        few, many = compiled.decide(less.principal), compiled.decide(asking.principal)
    else:
        access = Access(registry)
        try:
            few, many = (access.decide(one.principal, act, *names) for one in (less, asking))
        except UnknownView:  # pragma: no cover (all of the names are declared)
            raise AssertionError from None
    assert not few.allowed or many.allowed
    if few.allowed:
        assert many.masked <= few.masked
        assert few.rows == many.rows


def references(names: Iterable[str]) -> list[str]:
    return [f"{name}:*" for name in names]


def reading(registry: Registry, names: Iterable[str], act: str) -> Any:
    return Access(registry).reading(None, act, references(names), full_feature_names=True)


# Refused is unread.


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Rows of two tenants in every view."""
    made = Counting(open_online_store(f"sqlite:{tmp_path_factory.mktemp('store') / 'online.db'}"))
    for name in NAMES[:3]:
        of = view(name, Field(f"{name}_value", Int64))
        made.prepare(of)
        rows = pl.DataFrame(
            {
                "tenant": ["acme", "globex"],
                "item": [1, 1],
                "at": [NOON, NOON],
                f"{name}_value": [7, 8],
                PUBLICATION: [1, 1],
            },
            schema_overrides={"at": pl.Datetime("us", "UTC")},
        )
        made.write(of, rows, None)
    yield made
    made.close()


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    registry=registries(),
    asking=entitled | askings,
    names=asked_views,
    tenants=st.sampled_from(
        [["acme"], ["acme", "globex"], ["globex", "acme", "acme"], ["globex"], ["initech", "acme"]]
    ),
)
def test_a_refusal_leaves_the_store_unread(
    store: Any, registry: Registry, asking: Asking, names: list[str], tenants: list[str]
) -> None:
    """And what is answered has no value of another tenant, and none that is masked."""
    compiled = reading(registry, names, READ)
    lookup = OnlineLookup(compiled.plan, store)
    READS.clear()
    allowed, masked = model(registry, asking, READ, names)
    filtered = any(one.view.row_filter for one in compiled.plan.reads)
    allowed = allowed and (not filtered or set(tenants) == {asking.claims.get("tenant")})
    rows = {"tenant": tenants, "item": [1] * len(tenants)}
    try:
        answer = lookup.read(rows, compiled.decide(asking.principal).enforce())
    except Forbidden as error:
        answer, told = None, str(error)
    if answer is None:
        assert not allowed
        assert READS.total() == 0
        assert not any(tenant in told for tenant in ("acme", "globex", "initech"))
        return
    assert allowed
    assert set(READS) == {one.view.name for one in compiled.plan.reads}
    own = {"acme": 7, "globex": 8, "initech": None}
    for name in names:
        column = f"{name}__{'total_sum' if name == 'total' else f'{name}_value'}"
        expected = [1 if name == "total" else own[tenant] for tenant in tenants]
        assert answer[column] == ([None] * len(tenants) if name in masked else expected)
        assert (answer.statuses()[answer.names.index(column)] == ["MASKED"] * len(tenants)) == (name in masked)
