"""Settings: one typed object, read once at the start from defaults, file, environment and command line."""

from headwater.settings.load import Loaded, Origin, load
from headwater.settings.model import (
    DEFAULT_DEPLOYMENT,
    BillingSettings,
    DeploymentSettings,
    GatewaySettings,
    LogSettings,
    ModelStoreSettings,
    PriceSettings,
    Settings,
    StoreSettings,
    UpstreamSettings,
)
from headwater.settings.secret import Secret

__all__ = [
    "DEFAULT_DEPLOYMENT",
    "BillingSettings",
    "DeploymentSettings",
    "GatewaySettings",
    "Loaded",
    "LogSettings",
    "ModelStoreSettings",
    "Origin",
    "PriceSettings",
    "Secret",
    "Settings",
    "StoreSettings",
    "UpstreamSettings",
    "load",
]
