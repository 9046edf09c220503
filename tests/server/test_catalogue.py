"""What is published, as Feast's registry server tells it: shapes, pages, relations, and nothing that may not be known."""

from typing import Any

import httpx
import pytest

from tests.server.conftest import bearer

ROOT = "/api/v1"
COLLECTIONS = {
    "entities": "entities",
    "data_sources": "dataSources",
    "feature_views": "featureViews",
    "feature_services": "featureServices",
    "saved_datasets": "savedDatasets",
    "features": "features",
}


@pytest.fixture(scope="module")
def token(platform) -> dict[str, Any]:
    return bearer(platform.token("registry:read"))


@pytest.fixture(scope="module")
def narrow(platform) -> dict[str, Any]:
    """Knows the view `weather` and what is made from it alone."""
    return bearer(platform.token("registry:read:weather", "registry:read:comfort"))


async def got(http: httpx.AsyncClient, token: dict[str, Any], path: str, **params: Any) -> Any:
    answer = await http.get(f"{ROOT}/{path}", params=params, headers=token)
    assert answer.status_code == 200, answer.text
    return answer.json()


def names(found: list[dict[str, Any]]) -> list[str]:
    return [one.get("spec", one)["name"] for one in found]


async def test_a_view_is_described_by_spec_and_meta(http, token, platform):
    view = await got(http, token, "feature_views/weather")
    published = platform.registry.read().published_at.isoformat().replace("+00:00", "Z")
    assert (view["type"], view["meta"]["lastUpdatedTimestamp"]) == ("featureView", published)
    assert view["spec"]["project"] == "tests"
    assert view["spec"]["ttl"] == "21600s"
    assert view["spec"]["entities"] == ["airport"]
    assert view["spec"]["entityColumns"] == [{"name": "origin", "valueType": "STRING", "dtype": "String"}]
    assert view["spec"]["features"][0] == {
        "name": "temp",
        "valueType": "DOUBLE",
        "dtype": "Float64",
        "description": "",
        "tags": {},
        "default": None,
        "pii": None,
    }


async def test_an_on_demand_view_names_what_it_is_computed_from(http, token):
    view = await got(http, token, "feature_views/comfort")
    assert view["type"] == "onDemandFeatureView"
    assert view["spec"]["sources"]["weather"]["featureViewProjection"]["featureColumns"] == [{"name": "temp"}]
    assert view["spec"]["sources"]["clothes"]["requestDataSource"]["type"] == "REQUEST_SOURCE"


@pytest.mark.parametrize("collection", COLLECTIONS)
async def test_every_list_has_pages_and_its_form_with_projects(http, token, collection):
    key = COLLECTIONS[collection]
    listed = await got(http, token, collection)
    assert listed["pagination"]["totalCount"] == len(listed[key])
    everything = await got(http, token, f"{collection}/all")
    assert [one["project"] for one in everything[key]] == ["tests"] * len(listed[key])
    pieces: list[Any] = []
    for page in range(1, len(listed[key]) + 1):
        piece = await got(http, token, collection, page=page, limit=1)
        pieces += piece[key]
        assert piece["pagination"]["hasNext"] is (page < len(listed[key]))
    assert pieces == listed[key]
    beyond = await got(http, token, collection, page=1_000, limit=100)
    assert (beyond[key], beyond["pagination"]["hasNext"]) == ([], False)


async def test_lists_are_sorted_and_filtered_as_asked(http, token):
    down = await got(http, token, "feature_views", sort_by="name", sort_order="desc")
    assert names(down["featureViews"]) == sorted(names(down["featureViews"]), reverse=True)
    assert (await got(http, token, "feature_views", tags="team:risk"))["featureViews"] == []
    assert (await got(http, token, "features", feature_view="weather", name="wind"))["pagination"]["totalCount"] == 1
    assert len((await got(http, token, "feature_views", project="tests"))["featureViews"]) == 6


async def test_entities_features_and_projects_one_by_one(http, token):
    assert (await got(http, token, "entities/driver"))["spec"]["joinKeys"] == {"driver_id": "Int64"}
    feature = await got(http, token, "features/driver_stats/email")
    assert (feature["type"], feature["pii"]) == ("STRING", "email")
    assert names((await got(http, token, "projects"))["projects"]) == ["tests"]
    assert (await got(http, token, "projects/tests"))["spec"] == {"name": "tests"}


async def test_relations_lead_from_sources_and_entities_over_views_to_services(http, token):
    found = await got(http, token, "lineage/registry")

    def ends(key: str) -> set[tuple[str, str]]:
        return {(one["source"]["name"], one["target"]["name"]) for one in found[key]}

    assert {("airport", "weather"), ("temp", "weather"), ("weather", "comfort"), ("clothes", "comfort")} <= ends(
        "relationships"
    )
    assert ("comfort", "flying") in ends("relationships")
    assert ("airport", "flying") in ends("indirect_relationships")
    assert not ends("relationships") & {("airport", "flying")}
    one = await got(http, token, "lineage/objects/featureService/flying", include_indirect=True)
    assert {end["source"]["name"] for end in one["relationships"]} >= {"weather", "comfort", "airport", "clothes"}
    with_them = await got(http, token, "feature_views", include_relationships=True)
    assert with_them["relationships"]["weather"]
    whole = await got(http, token, "lineage/complete")
    assert len(whole["objects"]["featureViews"]) == 6
    assert (await got(http, token, "lineage/complete/all"))["projects"][0]["relationships"] == whole["relationships"]
    placed = await got(http, token, "lineage/registry/all")
    assert {one["project"] for one in placed["relationships"]} == {"tests"}


async def test_search_finds_names_before_what_is_similar(http, token):
    found = await got(http, token, "search", query="weather")
    assert (found["results"][0]["name"], found["results"][0]["match_score"]) == ("weather", 100.0)
    assert found["projects_searched"] == ["tests"]
    similar = await got(http, token, "search", query="wether")
    assert [hit["name"] for hit in similar["results"]] == ["weather"]
    assert similar["results"][0]["match_score"] < 100
    unknown = await got(http, token, "search", query="weather", projects="nowhere")
    assert (unknown["results"], unknown["errors"]) == ([], ["Following projects do not exist: nowhere"])


async def test_what_may_not_be_known_is_nowhere(http, narrow):
    """Not in a list, a relation, a service, a hint or a search."""
    assert names((await got(http, narrow, "feature_views"))["featureViews"]) == ["comfort", "weather"]
    assert names((await got(http, narrow, "feature_services"))["featureServices"]) == ["flying"]
    assert names((await got(http, narrow, "entities"))["entities"]) == ["airport"]
    for path in [*COLLECTIONS, "lineage/registry", "lineage/complete", "lineage/complete/all", "search?query=plan"]:
        told = await http.get(f"{ROOT}/{path}", headers=narrow)
        assert told.status_code == 200
        for hidden in ("secret_plans", "driver", "hint", "plotting", "contact"):
            assert hidden not in told.text, path
    refused = await http.get(f"{ROOT}/feature_views/secret_plan", headers=narrow)
    assert refused.status_code == 404
    assert "secret_plans" not in refused.text


@pytest.mark.parametrize(
    "path, status, kind",
    [
        ("feature_views/wether", 404, "FeastObjectNotFoundException"),
        ("feature_views?project=nowhere", 404, "FeastObjectNotFoundException"),
        ("feature_views?limit=101", 422, "RequestValidationError"),
        ("feature_views?sort_by=ttl", 422, "RequestValidationError"),
        ("feature_views?tags=risk", 422, "RequestValidationError"),
        ("nothing", 404, "FeastObjectNotFoundException"),
    ],
)
async def test_refusals_are_feasts(http, token, path, status, kind):
    answer = await http.get(f"{ROOT}/{path}", headers=token)
    assert (answer.status_code, answer.json()["status_code"], answer.json()["error_type"]) == (status, status, kind)


async def test_nobody_without_the_scope_reads_it(http, platform):
    assert (await http.get(f"{ROOT}/entities")).status_code == 401
    refused = await http.get(f"{ROOT}/entities", headers=bearer(platform.token("features:read")))
    assert refused.status_code == 403
    assert refused.json()["error_type"] == "FeastPermissionError"
    assert 'scope="registry:read"' in refused.headers["www-authenticate"]


@pytest.mark.parametrize("method", ["POST", "DELETE", "PUT"])
async def test_nothing_is_written_here(http, token, method):
    answer = await http.request(method, f"{ROOT}/entities/airport", headers=token)
    assert answer.status_code == 405
    assert "feature-assets apply" in answer.json()["detail"]
    assert answer.headers["allow"] == "GET"
