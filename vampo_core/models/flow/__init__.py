"""What video transformers on a rectified flow share: the first latent frame is given, all others are predicted."""
