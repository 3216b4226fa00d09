"""Sessions on an NVIDIA GPU. Importing this package loads no driver; the first session does."""
