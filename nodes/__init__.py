"""The node pack's register: node id → class and display name. Ids are public: never renamed, only added."""

from .analogy import EncodeAnalogy
from .apply import ApplyMixedLoRA
from .export import SaveMixedLoRA
from .grid import BuildGrid, CropResult
from .loaders import LoadBasis, LoadImageEncoder

NODE_CLASS_MAPPINGS = {
    "LoRWeBLoadBasis": LoadBasis,
    "LoRWeBLoadImageEncoder": LoadImageEncoder,
    "LoRWeBEncodeAnalogy": EncodeAnalogy,
    "LoRWeBApplyMixedLoRA": ApplyMixedLoRA,
    "LoRWeBBuildGrid": BuildGrid,
    "LoRWeBCropResult": CropResult,
    "LoRWeBSaveMixedLoRA": SaveMixedLoRA,
}

NODE_DISPLAY_NAME_MAPPINGS = {
    "LoRWeBLoadBasis": "Load LoRWeB Basis",
    "LoRWeBLoadImageEncoder": "Load Image Encoder (transformers)",
    "LoRWeBEncodeAnalogy": "Encode Analogy (CLIP)",
    "LoRWeBApplyMixedLoRA": "Apply Mixed LoRA to Kontext",
    "LoRWeBBuildGrid": "Build Analogy Grid",
    "LoRWeBCropResult": "Crop Analogy Result",
    "LoRWeBSaveMixedLoRA": "Save Mixed LoRA",
}
