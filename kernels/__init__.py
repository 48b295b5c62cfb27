"""Triton kernels, each beside its plain PyTorch reference; shipped as medseg.kernels."""

if __name__ != "medseg.kernels":  # in the repository root a plain `import kernels` would load a second copy
    raise ImportError("import medseg.kernels instead of kernels")
