"""The one place that decides. A request is allowed if a scope allows the act on every view that it touches, and the
policy of each of these views names whoever asks, and each row is one that the views' row filters leave open. What holds
personal data is withheld unless scope and policy allow that as well. Whatever nothing allows is refused.

A view's policy is the one that its current version declares, for all its versions: no code stands for the former ones.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NoReturn, Self

from feature_assets.access.principals import Principal
from feature_assets.access.scopes import HISTORY, KNOW, MATERIALIZE, PUSH, READ, SEE_PII
from feature_assets.errors import Forbidden, UnknownService, UnknownSource, UnknownView, WrongType
from feature_assets.references import Features, ReadPlan, Referable, ViewRead, projections, resolve
from feature_assets.registry import Registry
from feature_assets.registry.narrowing import views_behind
from feature_assets.spec import OnDemandViewSpec, StreamSource, ViewProjection, ViewSpec
from feature_assets.types import FeatureType

_POLICY: Final[Mapping[str, str]] = {
    READ: "read",
    HISTORY: "read",
    PUSH: "push",
    MATERIALIZE: "materialize",
    SEE_PII: "pii",
}
"""The act of a view's policy that stands behind each scope."""

_VERBS: Final[Mapping[str, str]] = {
    READ: "read",
    HISTORY: "read the history of",
    PUSH: "push into",
    MATERIALIZE: "materialise",
    KNOW: "know",
}

_DECISIONS_KEPT: Final = 128


@dataclass(frozen=True, slots=True)
class RowRule:
    """A column that has to have this value, canonical for its type, in every row."""

    column: str
    type: FeatureType
    value: Any
    view: str


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a principal may do what it asks.

    `rule` is what decided, in words for the audit log; `why` what the principal is told. `hidden`: it may not learn
    whether there is such a thing. `lacks` are scopes that would help. Of what is allowed, `masked` names the columns of
    the answer that are withheld, and `rows` what the rows have to keep to.
    """

    act: str
    views: tuple[str, ...]
    allowed: bool
    rule: str
    why: str = ""
    hidden: bool = False
    lacks: tuple[str, ...] = ()
    masked: frozenset[str] = frozenset()
    rows: tuple[RowRule, ...] = ()

    def enforce(self) -> Self:
        """Itself, if it allows.

        Raises:
            Forbidden: it does not.
        """
        if not self.allowed:
            raise Forbidden(self.why, self)
        return self

    def admit(self, column: Callable[[str], Sequence[Any]]) -> None:
        """See that the rows are all open to the principal, before anything is read or written for any of them.

        Args:
            column: the canonical values of a column, by its name.

        Raises:
            Forbidden: one is not; the message names the column and no value.
        """
        for rule in self.rows:
            self.admit_values(rule, column(rule.column))

    def admit_values(self, rule: RowRule, values: Sequence[Any]) -> None:
        """The same for one rule and the canonical values of its column.

        Raises:
            Forbidden: one is another than the rule asks for.
        """
        if values.count(rule.value) != len(values):
            self.refuse_rows(rule)

    def refuse_rows(self, rule: RowRule) -> NoReturn:
        """Refuse, for some row does not keep to this rule.

        Raises:
            Forbidden: always.
        """
        self.refuse(
            f"There are rows with another '{rule.column}' than yours, and view '{rule.view}' is open to you for your own "
            "alone. All of it is refused.",
            rule=f"row filter of {rule.view} on {rule.column}",
        )

    def refuse(self, why: str, *, rule: str) -> NoReturn:
        """Refuse after all.

        Raises:
            Forbidden: always.
        """
        raise Forbidden(why, replace(self, allowed=False, rule=rule, why=why, masked=frozenset(), rows=()))


class _Policy:
    """One act of a view's policy, compiled: the principals that it names, exactly or by how they begin."""

    __slots__ = ("_exact", "_prefixes", "names")

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._exact = frozenset(name for name in names if not name.endswith("*"))
        self._prefixes = tuple(name[:-1] for name in names if name.endswith("*"))

    def named(self, principal: Principal) -> str | None:
        """What it names the principal by, if it does."""
        for name in sorted(self._exact & principal.names):
            return name
        for prefix in self._prefixes:
            if any(name.startswith(prefix) for name in principal.names):
                return f"{prefix}*"
        return None


@dataclass(frozen=True, slots=True)
class _Need:
    """One thing that was asked for, and the views that the act on it touches."""

    kind: str
    name: str
    views: tuple[str, ...]
    known: bool


class Access:
    """Who may do what, by one registry snapshot. Safe to share between threads."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        views: list[ViewSpec | OnDemandViewSpec] = [*registry.views.values(), *registry.on_demand.values()]
        self._policies = {
            (view.name, act): _Policy(view.access.get(act, ()))
            for view in views
            if view.access is not None
            for act in _POLICY.values()
        }

    def decide(self, principal: Principal, act: str, *views: str) -> Decision:
        """Whether the principal may do this with all of these views; with none of them, with the platform as a whole.

        For rows that are written, `admit` them by the decision.

        Raises:
            UnknownView: there is no such view, and the principal may know that.
        """
        if not views:
            return in_general(principal, act, everywhere=True)
        rules: dict[str, None] = {}
        for view in views:
            need = _Need("feature view", view, (view,), self._declared(view) is not None)
            refused = self._refused(principal, act, need, rules)
            if refused is not None:
                return refused
        filters = [one for view in views for one in self._filters_of_rows(view)] if act == PUSH else []
        return self._with_rows(principal, Decision(act, views, allowed=True, rule="; ".join(rules)), filters)

    def pushing(self, principal: Principal, source: str) -> Decision:
        """Whether the principal may push rows to this source: with one of its views closed to it, to none of them.

        The pushed rows, as each view has them, are `admit`ted by the decision.

        Raises:
            UnknownSource: there is no such source, and the principal may know that.
        """
        registry, rules = self._registry, dict[str, None]()
        views = tuple(view.name for view in registry.fed_by(source))
        refused = self._refused(principal, PUSH, _Need("push source", source, views, known=bool(views)), rules)
        if refused is not None:
            return refused
        filters = [one for view in views for one in self._filters_of_rows(view)]
        return self._with_rows(principal, Decision(PUSH, views, allowed=True, rule="; ".join(rules)), filters)

    def reading(
        self, principal: Principal | None, act: str, features: Features, *, full_feature_names: bool = False
    ) -> "Reading":
        """The question compiled, with what it needs to be allowed.

        Args:
            principal: who asks. What it may not read is refused before it is looked at more closely, for a message may
                tell of what is there; None compiles for whoever will be asked about.
            act: READ for the latest values, HISTORY for what they were.
            features: what `references.resolve` takes.

        Raises:
            Forbidden: the principal may not read all of it.
            UnknownView, UnknownFeature, UnknownService: it is not there, and the principal may know that.
            RequestError: it cannot be answered as it was asked.
        """
        needs = tuple(self._needs(features))
        if principal is not None:
            for need in needs:
                refused = self._refused(principal, act, need, {})
                if refused is not None:
                    refused.enforce()
        return Reading(self, act, needs, resolve(self._registry, features, full_feature_names=full_feature_names))

    def names(self, view: str, act: str) -> tuple[str, ...] | None:
        """The principals that the view's policy names for this act; None if scopes alone decide."""
        policy = self._policies.get((view, _POLICY[act]))
        return None if policy is None else policy.names

    def _declared(self, view: str) -> ViewSpec | OnDemandViewSpec | None:
        return self._registry.views.get(view) or self._registry.on_demand.get(view)

    def _needs(self, features: Features) -> Iterator[_Need]:
        for asked in [features] if isinstance(features, str | ViewProjection | Referable) else features:
            thing = asked.reference if isinstance(asked, Referable) else asked
            service = thing if isinstance(thing, str) and ":" not in thing else None
            if service is not None and service not in self._registry.services:
                yield _Need("feature service", service, (), known=False)
                continue
            found = projections(self._registry, [thing])
            views = tuple(sorted(views_behind(self._registry, found)))
            kind = "feature view" if service is None else "feature service"
            yield _Need(kind, service or found[0].view, views, known=all(map(self._declared, views)))

    def _refused(self, principal: Principal, act: str, need: _Need, rules: dict[str, None]) -> Decision | None:
        """The refusal, unless it is allowed; then by which `rules`."""
        if not need.known:
            return self._unknown(principal, act, need)
        for view in need.views:
            scope = principal.grant.scope(act, view)
            if scope is None:
                return self._without_scope(principal, act, need)
            rules[f"scope {scope}"] = None
            policy = self._policies.get((view, _POLICY[act])) if act in _POLICY else None
            if policy is not None:
                named = policy.named(principal)
                if named is None:
                    return self._not_named(principal, act, need, view, policy)
                rules[f"{_POLICY[act]} policy of {view}: {named}"] = None
        return None

    def _unknown(self, principal: Principal, act: str, need: _Need) -> Decision | None:
        may_know = principal.grant.allows
        if not may_know(KNOW, need.name):
            return _hidden(act, need, f"no such {need.kind}")
        registry = self._registry
        if need.kind == "feature service":
            raise UnknownService.among(need.name, [name for name in registry.services if may_know(KNOW, name)])
        if need.kind == "push source":
            sources = [name for name, each in registry.sources.items() if isinstance(each, StreamSource)]
            if need.name in sources:
                return None  # It feeds no view yet, and whoever pushes to it is told so.
            raise UnknownSource.among(need.name, [name for name in sources if may_know(KNOW, name)])
        known = [name for name in (*registry.views, *registry.on_demand) if may_know(KNOW, name)]
        raise UnknownView.among(need.name, known)

    def _without_scope(self, principal: Principal, act: str, need: _Need) -> Decision:
        grant = principal.grant
        if not grant.allows(KNOW, need.name):
            return _hidden(act, need, f"no scope {act}")
        # What a service is made of is told as far as it may be known.
        missing = [f"{act}:{view}" for view in need.views if grant.allows(KNOW, view) and not grant.allows(act, view)]
        lacks = tuple(missing[:20]) or (act,)
        why = f"You may not {_VERBS[act]} the {need.kind} '{need.name}'. Ask for a token with: {' '.join(lacks)}"
        return Decision(act, need.views, allowed=False, rule=f"no scope {act}", why=why, lacks=lacks)

    def _not_named(self, principal: Principal, act: str, need: _Need, view: str, policy: _Policy) -> Decision:
        who = ", ".join(policy.names) or "nobody"
        rule = f"{_POLICY[act]} policy of {view} names {who}"
        grant = principal.grant
        if not grant.allows(KNOW, need.name):
            return _hidden(act, need, rule)
        told = f": the policy of '{view}' names {who}" if grant.allows(KNOW, view) else ": a policy does not name you"
        why = f"You may not {_VERBS[act]} the {need.kind} '{need.name}'{told}. Ask whoever owns it."
        return Decision(act, need.views, allowed=False, rule=rule, why=why)

    def sees_pii(self, principal: Principal, view: str) -> bool:
        """Whether the principal sees the view's personal data, if it may read the view at all."""
        if not principal.grant.allows(SEE_PII, view):
            return False
        policy = self._policies.get((view, "pii"))
        return policy is None or policy.named(principal) is not None

    def personal(self, plan: ReadPlan) -> Mapping[str, frozenset[str]]:
        """The outputs that hold personal data or are made from it, each with the views that say who sees it."""
        tainted: dict[str, frozenset[str]] = {}
        for read in plan.reads:
            # What is found to be personal is so in the former versions too.
            current = self._registry.views[read.view.name]
            for field in read.features:
                now = current.field(field.name)
                if field.pii or (now is not None and now.pii):
                    tainted[read.column(field.name)] = frozenset({read.view.name})
        for computed in plan.on_demand:
            # Nobody but its author knows what a transformation lets through; so all of it counts.
            inputs = frozenset[str]().union(*(tainted.get(column, frozenset()) for _, column in computed.inputs))
            own = frozenset({computed.spec.name})
            for field in computed.features:
                views = inputs | own if field.pii or (inputs and computed.spec.access is not None) else inputs
                if views:
                    tainted[computed.column(field.name)] = views
        return {output.name: tainted[output.column] for output in plan.outputs if output.column in tainted}

    def filters(self, plan: ReadPlan) -> list["_Filter"]:
        """What the row filters of the views ask of the columns that they are looked up by."""
        return [one for read in plan.reads for one in self._filters_of(read)]

    def _filters_of(self, read: ViewRead) -> Iterator["_Filter"]:
        columns = dict(read.keys)
        for key, claim in self._registry.views[read.view.name].row_filter.items():
            yield _Filter(read.view.name, columns.get(key), read.view.join_keys.get(key), claim)

    def _filters_of_rows(self, view: str) -> Iterator["_Filter"]:
        spec = self._registry.views.get(view)
        if spec is not None:
            for key, claim in spec.row_filter.items():
                yield _Filter(view, key, spec.join_keys[key], claim)

    def _with_rows(self, principal: Principal, decision: Decision, filters: Iterable["_Filter"]) -> Decision:
        rules: dict[tuple[str, str], RowRule] = {}
        for one in filters:
            found = one.rule(principal)
            if isinstance(found, str):
                rule = f"row filter of {one.view} on {one.column or one.claim}"
                return replace(decision, allowed=False, rule=rule, why=found, masked=frozenset())
            rules[found.view, found.column] = found
        return replace(decision, rows=tuple(rules.values())) if rules else decision


def _hidden(act: str, need: _Need, rule: str) -> Decision:
    why = (
        f"There is no {need.kind} '{need.name}', or you may not {_VERBS[act]} it. Look at its name; a token with the scopes "
        f"{act} and {KNOW} is told which of the two."
    )
    return Decision(act, need.views or (need.name,), allowed=False, rule=rule, why=why, hidden=True, lacks=(act,))


def in_general(principal: Principal, act: str, *, everywhere: bool = False) -> Decision:
    """Whether the principal may do this with some view at all, or with every one: what is asked before anything else."""
    grant = principal.grant
    if grant.everywhere(act) if everywhere else grant.anywhere(act):
        return Decision(act, (), allowed=True, rule=f"scope {act}")
    why = f"You need the scope {act} for this{', for all views' if everywhere else ''}. Ask for a token with: {act}"
    return Decision(act, (), allowed=False, rule=f"no scope {act}", why=why, lacks=(act,))


@dataclass(frozen=True, slots=True)
class _Filter:
    """One row filter as a question meets it. Of a former version that lacks the key nobody can say whose its rows are."""

    view: str
    column: str | None
    type: FeatureType | None
    claim: str

    def rule(self, principal: Principal) -> RowRule | str:
        """What it asks of the rows of this principal; else why none of them is open to it."""
        if self.column is None or self.type is None:
            return f"This version of view '{self.view}' lacks the join key that its row filter needs. Read the current one."
        claimed = principal.claims.get(self.claim)
        if claimed is None:
            return (
                f"View '{self.view}' is open for one's own '{self.column}' alone, and you have no claim '{self.claim}'."
            )
        try:
            return RowRule(self.column, self.type, self.type.parse(claimed), self.view)
        except WrongType:
            return (
                f"View '{self.view}' is open for one's own '{self.column}' alone, a {self.type}, and your claim "
                f"'{self.claim}' is none."
            )


class Reading:
    """A question, compiled: its plan, and what it needs to be allowed. Safe to share between threads."""

    __slots__ = ("_access", "_decided", "_filters", "_needs", "_personal", "act", "plan", "views")

    def __init__(self, access: Access, act: str, needs: Sequence[_Need], plan: ReadPlan) -> None:
        self._access, self.act, self._needs, self.plan = access, act, needs, plan
        self.views = tuple(dict.fromkeys(view for need in needs for view in need.views))
        self._personal = access.personal(plan)
        self._filters = access.filters(plan)
        self._decided: dict[Principal, Decision] = {}

    def decide(self, principal: Principal) -> Decision:
        """Whether the principal gets an answer, which columns of it are masked, and which rows it may ask for."""
        decided = self._decided.get(principal)
        if decided is None:
            decided = self._decide(principal)
            if decided.allowed:
                if len(self._decided) >= _DECISIONS_KEPT:
                    self._decided.clear()
                self._decided[principal] = decided
        return decided

    def _decide(self, principal: Principal) -> Decision:
        rules: dict[str, None] = {}
        for need in self._needs:
            refused = self._access._refused(principal, self.act, need, rules)
            if refused is not None:
                return refused
        masked = frozenset(
            name
            for name, views in self._personal.items()
            if not all(self._access.sees_pii(principal, view) for view in views)
        )
        decision = Decision(self.act, self.views, allowed=True, rule="; ".join(rules), masked=masked)
        return self._access._with_rows(principal, decision, self._filters)

    def visible(self, asked: Iterable[ViewProjection], decision: Decision) -> list[ViewProjection]:
        """What was asked for, without the features that the decision masks."""
        hidden = {output.column for output in self.plan.outputs if output.name in decision.masked}
        found = []
        for projection in asked:
            names = [o.field.name for o in self.plan.outputs if o.column.rpartition("__")[0] == projection.name]
            wanted = projection.features if projection.features is not None else tuple(names)
            left = tuple(name for name in wanted if f"{projection.name}__{name}" not in hidden)
            if left:
                found.append(projection[left])
        return found
