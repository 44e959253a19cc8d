"""What the deployments need of this machine: memory for each, and bytes still to fetch. Reads headers, no weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from headwater.catalogue.resolve import missing_entry, resolve
from headwater.catalogue.store import ModelStore
from headwater.doctor.checks import Check, DeploymentNeed, check_context, check_model
from headwater.errors import OperatorError
from headwater.settings.model import DeploymentSettings, ModelStoreSettings, Settings

# A guess until the file is here: a token's KV cache takes the weights' bytes over this. At 4 bits that is 30 KB for
# half a billion parameters (12 KB in truth) and 68 KB for one and a half (28 KB): high on purpose, since it only warns.
WEIGHTS_BYTES_PER_KV_BYTE: Final = 16_384


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What `find_needs` found.

    deployments: those whose model is known; download_bytes: of the models not here; checks: what is wrong with models.
    """

    deployments: tuple[DeploymentNeed, ...]
    download_bytes: int
    checks: tuple[Check, ...]


@dataclass(frozen=True, slots=True)
class _Model:
    """size_bytes: of the file; missing_bytes: still to fetch; kv_bytes_per_token: None until the file is here."""

    key: str
    size_bytes: int
    missing_bytes: int
    kv_bytes_per_token: int | None
    context_tokens: int


def find_needs(settings: Settings) -> Needs:
    """Return the needs of all deployments; a model that can't be served becomes a failed check, not an exception."""
    needs: list[DeploymentNeed] = []
    checks: list[Check] = []
    missing: dict[str, int] = {}  # two deployments of one model fetch it once
    for deployment in settings.deployments:
        try:
            model = _find_model(deployment.model, settings.models)
        except OperatorError as error:
            checks.append(check_model(deployment.name, error))
            continue
        needs.append(_need(deployment, model))
        checks += check_context(deployment.name, deployment.context_tokens, model.context_tokens)
        missing[model.key] = model.missing_bytes
    return Needs(deployments=tuple(needs), download_bytes=sum(missing.values()), checks=tuple(checks))


def _find_model(model: str, settings: ModelStoreSettings) -> _Model:
    entry = missing_entry(model, settings)
    if entry is None:
        found = resolve(model, settings)
        return _Model(str(found.path), found.size_bytes, 0, found.kv_bytes_per_token, found.context_tokens)
    holding = ModelStore(Path(settings.directory)).holding(entry)
    here_bytes = holding.here_bytes if holding.state == "partial" else 0  # a damaged file is fetched again, whole
    return _Model(entry.sha256, entry.size_bytes, entry.size_bytes - here_bytes, None, entry.context_tokens)


def _need(deployment: DeploymentSettings, model: _Model) -> DeploymentNeed:
    per_token = model.kv_bytes_per_token
    guess = model.size_bytes // WEIGHTS_BYTES_PER_KV_BYTE
    return DeploymentNeed(
        name=deployment.name,
        weights_bytes=model.size_bytes,
        kv_bytes=(guess if per_token is None else per_token) * deployment.context_tokens * deployment.slots,
        is_estimate=per_token is None,
        replicas=deployment.replicas,
    )
