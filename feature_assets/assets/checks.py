"""Checks that a view declares, as Dagster shows them."""

from collections.abc import Sequence

import dagster as dg

from feature_assets.checks import AnyCheck, CheckResult, RowCheck


def check_specs(checks: Sequence[AnyCheck], asset: dg.AssetKey) -> list[dg.AssetCheckSpec]:
    """The declared checks as checks of the asset."""
    return [
        dg.AssetCheckSpec(check.label, asset=asset, description=check.asks, blocking=check.severity == "error")
        for check in checks
    ]


def check_result(result: CheckResult, asset: dg.AssetKey) -> dg.AssetCheckResult:
    """How a check came out, with the first failing rows as a table."""
    metadata: dict[str, dg.MetadataValue] = {"found": dg.MetadataValue.text(result.found)}
    if isinstance(result.check, RowCheck):
        # Also where it is 0: what is plotted over time would have gaps else.
        metadata["failing_rows"] = dg.MetadataValue.int(result.failing)
    if result.examples is not None:
        metadata["first_failing_rows"] = dg.MetadataValue.md(_table(result))
    if result.kept_at:
        metadata["kept_at"] = dg.MetadataValue.path(result.kept_at)
    severity = dg.AssetCheckSeverity.ERROR if result.check.severity == "error" else dg.AssetCheckSeverity.WARN
    return dg.AssetCheckResult(
        passed=result.passed,
        asset_key=asset,
        check_name=result.check.label,
        severity=severity,
        description=f"{result.check.asks}: {result.found}",
        metadata=metadata,
    )


def _table(result: CheckResult) -> str:
    rows = result.examples
    if rows is None:
        return ""
    names = [name for name in rows.columns if not name.startswith("__")]
    lines = [" | ".join(names), " | ".join("---" for _ in names)]
    for row in rows.select(names).iter_rows():
        lines.append(" | ".join(str(value).replace("|", "\\|")[:80] for value in row))
    return "\n".join(lines)
