"""Making online equal to what offline says is latest: reflect a commit, settle keys, reconcile, verify, erase."""

from feature_assets.settlement.latest import key_frame, latest_rows, latest_tokens, no_rows, order, taken_back
from feature_assets.settlement.reconciling import Reconciliation, erase, finish_stream, reconcile
from feature_assets.settlement.reflecting import (
    Reflected,
    journal_entry,
    pending,
    reached,
    reflect,
    reflect_pushes,
    stored_state,
    unreflected,
)
from feature_assets.settlement.settling import SETTLING, settle
from feature_assets.settlement.verifying import Differences, verify

__all__ = [
    "SETTLING",
    "Differences",
    "Reconciliation",
    "Reflected",
    "erase",
    "finish_stream",
    "journal_entry",
    "key_frame",
    "latest_rows",
    "latest_tokens",
    "no_rows",
    "order",
    "pending",
    "reached",
    "reconcile",
    "reflect",
    "reflect_pushes",
    "settle",
    "stored_state",
    "taken_back",
    "unreflected",
    "verify",
]
