"""Building blocks of networks. They take plain numbers and know nothing of diffusion."""
