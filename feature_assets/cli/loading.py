"""The Dagster definitions of a project, found by the name that its settings give."""

import importlib
import importlib.util
import sys
import traceback
from pathlib import Path
from types import ModuleType

import dagster as dg

from feature_assets.assets.resources import RESOURCE, FeatureAssets
from feature_assets.config import FILE_NAME, Settings
from feature_assets.errors import ConfigurationError, FeatureAssetsError
from feature_assets.functions import make_importable


def load_definitions(settings: Settings) -> dg.Definitions:
    """The one `Definitions` in the file or module that `settings.definitions` names.

    Raises:
        ConfigurationError: there is no such file or module, it cannot be run, or it has no or several definitions.
    """
    module = vars(_module(settings.definitions, settings.root))
    found = {id(value): value for value in module.values() if isinstance(value, dg.Definitions)}
    if isinstance(module.get("defs"), dg.Definitions):
        return module["defs"]  # type: ignore[no-any-return]
    if len(found) == 1:
        return found.popitem()[1]
    if found:
        raise ConfigurationError(f"{settings.definitions} has {len(found)} Definitions. Call the one to use 'defs'.")
    raise ConfigurationError(
        f"{settings.definitions} has no Dagster Definitions. Add: defs = feature_definitions(assets=[…])"
    )


def require_same_stores(definitions: dg.Definitions, settings: Settings) -> None:
    """See that what runs writes where these settings point.

    Raises:
        ConfigurationError: the resource in the definitions was given another configuration.
    """
    resource = (definitions.resources or {}).get(RESOURCE)
    if resource is None:
        raise ConfigurationError(
            f"The definitions have no resource '{RESOURCE}'. Make them with feature_definitions(assets=[…])."
        )
    if not isinstance(resource, FeatureAssets):
        return
    theirs = resource.settings()
    for name in ("offline", "registry"):
        here, there = settings.place(getattr(settings, name)), theirs.place(getattr(theirs, name))
        if here != there:
            raise _elsewhere(name, here, there)
    if settings.online_url != theirs.online_url:
        raise _elsewhere("online", settings.online_url, theirs.online_url)


def _elsewhere(name: str, here: str, there: str) -> ConfigurationError:
    return ConfigurationError(
        f"The definitions keep '{name}' at {there}, and the settings say {here}. "
        f"Leave config= out of feature_definitions(), or name the same {FILE_NAME}."
    )


def _module(name: str, root: Path) -> ModuleType:
    make_importable(root)
    try:
        return (
            _from_file((root / name).resolve(), root.resolve())
            if name.endswith(".py")
            else importlib.import_module(name)
        )
    except ConfigurationError:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.split(".")[0] == name.split(".", maxsplit=1)[0]:
            raise ConfigurationError(
                f"There is no module '{name}' below {root}. Name it in {FILE_NAME}: definitions = \"<file or module>\""
            ) from error
        raise _not_loadable(name, root, error) from error
    except (Exception, SystemExit) as error:
        # Whatever a person's own code raises is told with its place there.
        raise _not_loadable(name, root, error) from error


def _from_file(path: Path, root: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigurationError(
            f"There is no {path.name} in {path.parent}. Name yours in {FILE_NAME}, or start a project. "
            f"Run: feature-assets init"
        )
    # The name that an import of it would have: loaded twice, it would declare every view twice.
    name = ".".join(path.relative_to(root).with_suffix("").parts) if path.is_relative_to(root) else path.stem
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__file__", None) == str(path):
        return known
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigurationError(f"{path} cannot be loaded as Python.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    # What was not loaded to its end is not to be found as if it were.
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _not_loadable(name: str, root: Path, error: BaseException) -> ConfigurationError:
    return ConfigurationError(f"{name} cannot be loaded: {_words(error)} ({_place(error, root)})")


def _words(error: BaseException) -> str:
    text = str(error).strip()
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg}"
    # Our own messages say all; of others the kind matters.
    return text if isinstance(error, FeatureAssetsError) else f"{type(error).__name__}: {text}"


def _place(error: BaseException, root: Path) -> str:
    if isinstance(error, SyntaxError) and error.filename:
        return f"{_relative(error.filename, root)}, line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [one for one in frames if Path(one.filename).is_relative_to(root) and "site-packages" not in one.filename]
    last = (own or list(frames))[-1]
    return f"{_relative(last.filename, root)}, line {last.lineno}"


def _relative(file: str, root: Path) -> str:
    path = Path(file)
    return str(path.relative_to(root)) if path.is_relative_to(root) else str(path)
