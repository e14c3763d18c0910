"""LoRWeB without a host: files, image embeddings, routing, mixing, grids and export.

One way through, no step back: images → query embedding (`encoder`, `query`) → coefficients (`router`) →
mixed LoRA (`mixing`) → a file (`export`) or the host's model (`nodes/`). Nothing here imports ComfyUI,
diffusers or the trainer. Method: arXiv 2602.15727.
"""
