"""Is this machine ready for this configuration? Checks that say what is, why it matters and what to do."""

from headwater.doctor.checks import Check, DeploymentNeed, Verdict
from headwater.doctor.examine import examine

__all__ = ["Check", "DeploymentNeed", "Verdict", "examine"]
