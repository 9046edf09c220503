"""On-demand functions: found by import path, and run only if they are the registered ones."""

import importlib
import sys
from functools import partial
from pathlib import Path

import pytest

from feature_assets.errors import DeclarationError, TransformationRefused
from feature_assets.functions import function_digest, import_path, load_function
from feature_assets.spec import Function

SOURCE = """
def doubled(frame):
    return {"twice": frame["x"] * 2}

FACTOR = 3
"""


def at_the_top(frame):
    return frame


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module and imports it; gone from `sys.modules` afterwards."""
    monkeypatch.syspath_prepend(tmp_path)
    made = []

    def write(name: str, source: str = SOURCE):
        (tmp_path / f"{name}.py").write_text(source)
        importlib.invalidate_caches()
        made.append(name)
        return importlib.import_module(name)

    yield write
    for name in made:
        sys.modules.pop(name, None)


def registered(function) -> Function:
    return Function(import_path(function), function_digest(function))


def test_a_function_is_loaded_from_an_allowed_module(module):
    doubled = module("fa_allowed").doubled
    assert load_function(registered(doubled), ["fa_allowed"], "view") is doubled


@pytest.mark.parametrize("allowed", [[], ["fa_other"], ["fa_allow"], ["fa_allowed.sub"], [""]])
def test_a_module_that_is_not_allowed_is_not_even_imported(module, allowed):
    how = registered(module("fa_allowed").doubled)
    del sys.modules["fa_allowed"]
    with pytest.raises(TransformationRefused, match=r'add "fa_allowed" to functions in feature_assets.toml'):
        load_function(how, allowed, "view")
    assert "fa_allowed" not in sys.modules


def test_a_package_allows_what_is_in_it(tmp_path, module):
    (tmp_path / "fa_package").mkdir()
    (tmp_path / "fa_package" / "__init__.py").touch()
    module("fa_package")
    (tmp_path / "fa_package" / "inner.py").write_text(SOURCE)
    inner = importlib.import_module("fa_package.inner")
    try:
        assert load_function(registered(inner.doubled), ["fa_package"], "view") is inner.doubled
    finally:
        del sys.modules["fa_package.inner"]


def test_another_source_is_refused(module):
    how = registered(module("fa_changed").doubled)
    del sys.modules["fa_changed"]
    module("fa_changed", SOURCE.replace("* 2", "* 2.0"))
    with pytest.raises(TransformationRefused, match=r"not the one that was registered.*feature-assets apply"):
        load_function(how, ["fa_changed"], "view")


def test_old_code_does_not_run_under_the_digest_of_the_new_file(module):
    loaded = module("fa_stale")
    new = Path(loaded.__file__)
    new.write_text(SOURCE.replace("* 2", "* 200"))
    how = registered(loaded.doubled)
    with pytest.raises(TransformationRefused, match="Restart the process"):
        load_function(how, ["fa_stale"], "view")


def test_where_a_function_stands_in_its_file_is_not_part_of_its_digest(module):
    one = module("fa_one").doubled
    other = module("fa_two", "\n\n# moved\n" + SOURCE).doubled
    assert function_digest(one) == function_digest(other)


@pytest.mark.parametrize(
    "path, why",
    [
        ("fa_missing:f", "cannot be imported here: ModuleNotFoundError"),
        ("fa_broken:f", "cannot be imported here: ZeroDivisionError"),
        ("fa_there:nothing", "has no function 'nothing'"),
        ("fa_there:FACTOR", "has no function 'FACTOR'"),
        ("fa_there:__doc__", "has no function"),
    ],
)
def test_what_cannot_be_loaded_is_refused_with_its_reason(tmp_path, module, path, why):
    module("fa_there")
    (tmp_path / "fa_broken.py").write_text("1 / 0")
    with pytest.raises(TransformationRefused, match=f"^view is computed by {path}.*{why}"):
        load_function(Function(path, "0" * 64), [path.partition(":")[0]], "view")


def test_a_decorated_function_is_found_behind_what_wraps_it(module):
    source = (
        "class View:\n    def __init__(self, function):\n        self.__wrapped__ = function\n\n"
        "@View\ndef doubled(frame):\n    return frame\n"
    )
    decorated = module("fa_decorated", source).doubled
    how = Function("fa_decorated:doubled", function_digest(decorated))
    assert load_function(how, ["fa_decorated"], "view") is decorated.__wrapped__


def test_a_view_declared_by_its_function_is_served_by_it(module):
    source = (
        "from feature_assets import Field, Float64, on_demand_feature_view\n"
        "from feature_assets.spec import RequestSource\n\n"
        'asked = RequestSource("asked", [Field("x", Float64)])\n\n\n'
        '@on_demand_feature_view(sources=[asked], schema=[Field("twice", Float64)])\n'
        'def doubled(frame):\n    return {"twice": frame["x"] * 2}\n'
    )
    view = module("fa_declared", source).doubled
    function = load_function(view.spec.transformation, ["fa_declared"], "view")
    assert function({"x": 2}) == {"twice": 4}


def test_only_what_another_process_can_import_may_be_declared():
    def nested(frame):
        return frame

    assert import_path(at_the_top) == f"{__name__}:at_the_top"
    for function, why in [
        (lambda frame: frame, "is a lambda"),
        (nested, "Move it to the top of its module"),
        (partial(at_the_top), "is not a plain function"),
        (len, "is not a plain function"),
        (Path.exists, "is defined inside Path"),
    ]:
        with pytest.raises(DeclarationError, match=why):
            import_path(function)


def test_a_function_of_a_script_or_without_a_file_is_refused():
    scope = {"__name__": "__main__"}
    exec("def typed(frame): return frame", scope)  # noqa: S102 (as a notebook does)
    with pytest.raises(DeclarationError, match="a script or notebook"):
        import_path(scope["typed"])
    with pytest.raises(DeclarationError, match="Define it in a file"):
        function_digest(scope["typed"])
