"""Networks, losses, optimizer steps, precision and CUDA graphs in plain torch, without ranks."""
