"""The controller: turns wished deployments into running replicas. The gateway never imports it, nor it the gateway."""
