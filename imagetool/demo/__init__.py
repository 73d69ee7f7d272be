"""The demo's source image: a real image of three layers, made of Debian's packages, so that no registry is needed."""
