"""Checks over the whole configuration: what each value alone can't show. Pure."""

from collections.abc import Mapping, Sequence

from headwater.settings.problems import Problem, did_you_mean

Items = Mapping[str, Sequence[Mapping[str, object]]]


def callable_names(items: Items) -> list[str]:
    """Return the names callers may ask for: each deployment's, `upstream/model`, and each route's."""
    return [*target_names(items), *(str(item["name"]) for item in items["routes"] if "name" in item)]


def target_names(items: Items) -> list[str]:
    """Return the names that a route may have as targets: each deployment's, and `upstream/model`."""
    names = [str(item["name"]) for item in items["deployments"] if "name" in item]
    for item in items["upstreams"]:
        models = item.get("models", ())
        names += [f"{item.get('name')}/{model}" for model in models] if isinstance(models, tuple) else []
    return names


def check_whole(items: Items, *, is_namespace_known: bool) -> list[Problem]:
    """Return what is wrong between values that are each right.

    items: the parsed values of each list of tables; those that were wrong are absent.
    is_namespace_known: whether every deployment, upstream and route was right; if not, an unknown name proves nothing.
    """
    named = [*_keyed(items, "deployments", "name"), *_keyed(items, "upstreams", "name")]
    problems = _duplicates(named, "is the name of")
    problems += _routes(items, dict(named), is_namespace_known=is_namespace_known)
    priced, costed = _keyed(items, "prices", "model"), _keyed(items, "costs", "model")
    problems += _duplicates(priced, "is priced by")
    problems += _duplicates(costed, "has its cost in")
    problems += _duplicates(_keyed(items, "webhooks", "url"), "is told by")
    if is_namespace_known:
        known = callable_names(items)
        problems += [
            Problem(key, f'"{model}" is not configured.{did_you_mean(model, known)} It can be {" or ".join(known)}.')
            for key, model in [*priced, *costed]
            if model not in known
        ]
    for index, item in enumerate(items["upstreams"]):
        headers = item.get("headers")
        if item.get("api_key") is not None and isinstance(headers, dict) and "authorization" in headers:
            says = f"expected only one of this and upstreams[{index}].api_key; both set the same header."
            problems.append(Problem(f"upstreams[{index}].headers.authorization", says))
    return problems


def _routes(items: Items, named: Mapping[str, str], *, is_namespace_known: bool) -> list[Problem]:
    """What is wrong with routes. named: names of deployments and upstreams by their keys."""
    problems: list[Problem] = []
    first = {name: key for key, name in named.items()}
    routes = {name for _, name in _keyed(items, "routes", "name")}
    known = target_names(items)
    problems += _duplicates(
        [*((key, name) for name, key in first.items()), *_keyed(items, "routes", "name")], "is the name of"
    )
    for index, item in enumerate(items["routes"]):
        targets = item.get("targets")
        if not isinstance(targets, tuple):
            continue
        key = f"routes[{index}].targets"
        for number, target in enumerate(targets):
            if target in routes:
                problems.append(
                    Problem(f"{key}[{number}]", f'"{target}" is a route; expected deployments or `upstream/model`.')
                )
            elif target not in known and is_namespace_known:
                says = f'"{target}" is not configured.{did_you_mean(target, known)} It can be {" or ".join(known)}.'
                problems.append(Problem(f"{key}[{number}]", says))
    return problems


def _keyed(items: Items, table: str, field: str) -> list[tuple[str, str]]:
    return [(f"{table}[{i}].{field}", str(item[field])) for i, item in enumerate(items[table]) if field in item]


def _duplicates(keyed: Sequence[tuple[str, str]], says: str) -> list[Problem]:
    first: dict[str, str] = {}
    problems = []
    for key, value in keyed:
        if value in first:
            problems.append(
                Problem(key, f'"{value}" {says} {first[value].rpartition(".")[0]} already; expected each only once.')
            )
        first.setdefault(value, key)
    return problems
