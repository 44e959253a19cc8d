"""Checks over the whole configuration: what each value alone can't show. Pure."""

from collections.abc import Mapping, Sequence

from headwater.settings.problems import Problem, did_you_mean

Items = Mapping[str, Sequence[Mapping[str, object]]]


def callable_names(items: Items) -> list[str]:
    """Return the names callers may ask for: each deployment's, and `upstream/model`."""
    names = [str(item["name"]) for item in items["deployments"] if "name" in item]
    for item in items["upstreams"]:
        models = item.get("models", ())
        names += [f"{item.get('name')}/{model}" for model in models] if isinstance(models, tuple) else []
    return names


def check_whole(items: Items, *, is_namespace_known: bool) -> list[Problem]:
    """Return what is wrong between values that are each right.

    items: the parsed values of each list of tables; those that were wrong are absent.
    is_namespace_known: whether every deployment and upstream was right; if not, a price's unknown model proves nothing.
    """
    named = [*_keyed(items, "deployments", "name"), *_keyed(items, "upstreams", "name")]
    problems = _duplicates(named, "is the name of")
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
