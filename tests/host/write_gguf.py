"""Turn a plain Flux file into GGUF; run with the host's interpreter, which has the gguf package.

Usage: python write_gguf.py IN.safetensors OUT.gguf KIND
"""

import sys

import gguf
from safetensors.numpy import load_file


def main():
    """Write block matrices in the wanted kind, everything else in float32."""
    source, target, kind = sys.argv[1:]
    writer = gguf.GGUFWriter(target, "flux")
    for name, tensor in load_file(source).items():
        is_block_matrix = "_blocks." in name and tensor.ndim == 2
        quantisation = gguf.GGMLQuantizationType[kind if is_block_matrix else "F32"]
        writer.add_tensor(name, gguf.quants.quantize(tensor, quantisation), raw_dtype=quantisation)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


main()
