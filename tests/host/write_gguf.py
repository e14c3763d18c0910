"""Turn a plain Flux file into GGUF, and that back into a plain file; run with a Python that has the gguf package.

Usage: python write_gguf.py IN.safetensors OUT.gguf KIND DEQUANTISED.safetensors
"""

import sys

import gguf
from safetensors.numpy import load_file, save_file


def main():
    """Write block matrices in the wanted kind, everything else in float32; then what they have become."""
    source, target, kind, dequantized = sys.argv[1:]
    plain = {}
    writer = gguf.GGUFWriter(target, "flux")
    for name, tensor in load_file(source).items():
        is_block_matrix = "_blocks." in name and tensor.ndim == 2
        quantization = gguf.GGMLQuantizationType[kind if is_block_matrix else "F32"]
        blocks = gguf.quants.quantize(tensor, quantization)
        writer.add_tensor(name, blocks, raw_dtype=quantization)
        plain[name] = gguf.quants.dequantize(blocks, quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(plain, dequantized)


main()
