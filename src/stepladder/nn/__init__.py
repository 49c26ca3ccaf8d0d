"""Building blocks of networks. They take plain numbers and do not depend on diffusion."""
