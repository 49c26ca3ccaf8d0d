"""Records of measurements, and what is made from them."""
