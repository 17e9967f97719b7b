"""Networks, Grad-CAM, losses, figures of merit, and the weights store."""
