"""How networks learn: the fit, optimizers, losses, the solved last layer."""
