"""What a view may declare of who sees it, and what is refused when it is declared."""

from typing import Any

import dagster as dg
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_assets import Entity, Field, OnDemandFeatureView, feature_view
from feature_assets.errors import DeclarationError
from feature_assets.spec import ViewSpec, canonical_json, from_json
from feature_assets.types import UUID, Bool, Bytes, Date, Decimal, Float64, Int64, String, Timestamp

TENANT = Entity("tenant", {"tenant_id": String})


def declared(**policy: Any) -> ViewSpec:
    keys = policy.pop("keys", {"tenant_id": String})
    return ViewSpec(
        name="orders",
        entities=(Entity("tenant", keys),),
        features=(Field("total", Float64),),
        event_timestamp="at",
        **policy,
    )


def test_a_policy_means_the_same_in_whatever_order_it_is_written() -> None:
    one = declared(access={"read": ["role:risk_*", "client:scorer"], "push": []})
    other = declared(access={"push": (), "read": ("client:scorer", "role:risk_*", "client:scorer")})
    assert one == other
    assert canonical_json(one) == canonical_json(other)
    assert from_json(canonical_json(one), ViewSpec) == one
    assert one.access == {"push": (), "read": ("client:scorer", "role:risk_*")}


def test_without_a_policy_nothing_of_it_is_stored() -> None:
    assert b"access" not in canonical_json(declared())
    assert b"row_filter" not in canonical_json(declared())


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"access": {}}, r"access is \{\}. Name who may do what.*Leave it out"),
        ({"access": ["role:risk"]}, r"access is \['role:risk'\]"),
        ({"access": {"write": ["role:risk"]}}, "no act 'write'. There are: read, push, materialize, pii"),
        ({"access": {"read": "role:risk"}}, r"access\['read'\] is 'role:risk'. Give a list"),
        ({"access": {"read": None}}, r"access\['read'\] is None. Give a list"),
        ({"access": {"read": ["risk"]}}, r"access\['read'\] names 'risk'. Write role:…"),
        ({"access": {"read": ["team:risk"]}}, "names 'team:risk'. Write role:…"),
        ({"access": {"read": ["role:"]}}, "names 'role:'. Write"),
        ({"access": {"read": ["Role:risk"]}}, "names 'Role:risk'. Write"),
        ({"access": {"read": [" role:risk"]}}, "names ' role:risk'. Write"),
        ({"access": {"read": ["role:*risk"]}}, r"names 'role:\*risk'. Write"),
        ({"access": {"read": ["role:risk_*_eu"]}}, "with a star behind it"),
        ({"access": {"read": ["role:risk**"]}}, "with a star behind it"),
        ({"access": {"read": [5]}}, "names 5. Write"),
        ({"access": {"read": ["role:a\nb"]}}, "which no token can name"),
        ({"access": {"read": [f"role:{'a' * 600}"]}}, "longer than 512 letters"),
        ({"row_filter": {"tenant": "tenant"}}, r"'tenant', which is no join key of it \(join keys: tenant_id\)"),
        ({"row_filter": {"total": "tenant"}}, "'total', which is no join key"),
        ({"row_filter": ["tenant_id"]}, "Give the claim for each join key"),
        ({"row_filter": {"tenant_id": ""}}, "with the claim ''. Give the claim's name"),
        ({"row_filter": {"tenant_id": 5}}, "with the claim 5. Give the claim's name"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_right_fails_when_it_is_declared(policy: dict[str, Any], message: str) -> None:
    with pytest.raises(DeclarationError, match=message):
        declared(**policy)


@pytest.mark.parametrize("of", [Bytes, Date, Timestamp, Decimal(9, 2)], ids=str)
def test_a_row_filter_on_what_no_claim_can_be(of: Any) -> None:
    with pytest.raises(
        DeclarationError, match=r"no claim of a token is one. Filter by a join key that is one of: String"
    ):
        declared(keys={"tenant_id": of}, row_filter={"tenant_id": "tenant"})


@pytest.mark.parametrize("of", [String, Int64, Bool, UUID], ids=str)
def test_a_row_filter_on_what_a_claim_can_be(of: Any) -> None:
    assert declared(keys={"tenant_id": of}, row_filter={"tenant_id": "org.tenant"}).row_filter


def test_a_view_without_entities_has_no_rows_of_anybody() -> None:
    with pytest.raises(DeclarationError, match="join keys: none: it has no entities"):
        ViewSpec(
            name="rates", features=(Field("rate", Float64),), event_timestamp="at", row_filter={"tenant_id": "tenant"}
        )


def test_an_on_demand_view_has_no_rows_to_push() -> None:
    source = orders()
    with pytest.raises(
        DeclarationError, match=r"On-demand view 'double': access has no act 'push'. There are: read, pii"
    ):
        double(source, access={"push": ["role:risk"]})
    assert double(source, access={"read": ["role:risk"]}).spec.access == {"read": ("role:risk",)}


def test_a_policy_that_changes_makes_no_partition_stale() -> None:
    """Who may see rows changes nothing in them."""
    one, other = orders(), orders(access={"read": ["role:risk"]}, row_filter={"tenant_id": "tenant"})
    assert one.spec.code_version == other.spec.code_version
    assert other.spec.access == {"read": ("role:risk",)}
    assert other.spec.row_filter == {"tenant_id": "tenant"}


def orders(**policy: Any) -> Any:
    @feature_view(entities=[TENANT], schema=[Field("total", Float64)], event_timestamp="at", **policy)
    def orders() -> pl.DataFrame:
        """Never computed here."""
        raise NotImplementedError

    return orders


def double(source: dg.AssetsDefinition, **policy: Any) -> OnDemandFeatureView:
    return OnDemandFeatureView(
        "double",
        sources=[source],
        schema=[Field("twice", Float64)],
        expressions={"twice": pl.col("total") * 2},
        **policy,
    )


principals = st.builds("{}:{}{}".format, st.sampled_from(["role", "group", "client", "subject"]), st.text(
    st.characters(categories=("L", "N", "P"), exclude_characters="*"), min_size=1, max_size=20), st.sampled_from(["", "*"]))  # fmt: skip


@given(
    access=st.dictionaries(st.sampled_from(["read", "push", "materialize", "pii"]), st.lists(principals), min_size=1)
)
def test_a_policy_survives_the_registry(access: dict[str, list[str]]) -> None:
    view = declared(access=access)
    assert from_json(canonical_json(view), ViewSpec) == view
    assert {act: set(names) for act, names in (view.access or {}).items()} == {
        act: set(names) for act, names in access.items()
    }
