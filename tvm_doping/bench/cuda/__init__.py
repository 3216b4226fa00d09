"""Doped LSTMs on a GPU against cuDNN: `python -m tvm_doping.bench.cuda`. A kit is made where there is nvcc, and measured where
there is a GPU; that machine needs PyTorch, TVM's runtime and nothing that compiles.
"""
