"""The nodes of the pack: id → class and display name. Ids are public: never renamed, only added.

The tables are literals because tools that find packs for missing nodes read the ids from the source.
"""

from .analogy import EncodeAnalogies, EncodeAnalogy
from .apply import ApplyMixedLoRA
from .coefficients import AdjustCoefficients, BlendCoefficients, LoadCoefficients, PreviewCoefficients, SaveCoefficients
from .export import SaveMixedLoRA
from .grid import BuildGrid, CropResult
from .loaders import LoadBasis, LoadImageEncoder
from .prompt import EmptyPrompt
from .sockets import guard

NODE_CLASS_MAPPINGS = {
    "LoRWeBLoadBasis": LoadBasis,
    "LoRWeBLoadImageEncoder": LoadImageEncoder,
    "LoRWeBEncodeAnalogy": EncodeAnalogy,
    "LoRWeBApplyMixedLoRA": ApplyMixedLoRA,
    "LoRWeBBuildGrid": BuildGrid,
    "LoRWeBCropResult": CropResult,
    "LoRWeBSaveMixedLoRA": SaveMixedLoRA,
    "LoRWeBBlendCoefficients": BlendCoefficients,
    "LoRWeBAdjustCoefficients": AdjustCoefficients,
    "LoRWeBPreviewCoefficients": PreviewCoefficients,
    "LoRWeBSaveCoefficients": SaveCoefficients,
    "LoRWeBLoadCoefficients": LoadCoefficients,
    "LoRWeBEncodeAnalogies": EncodeAnalogies,
    "LoRWeBEmptyPrompt": EmptyPrompt,
}

NODE_DISPLAY_NAME_MAPPINGS = {
    "LoRWeBLoadBasis": "Load LoRWeB Basis",
    "LoRWeBLoadImageEncoder": "Load Image Encoder (transformers)",
    "LoRWeBEncodeAnalogy": "Encode Analogy (CLIP)",
    "LoRWeBApplyMixedLoRA": "Apply Mixed LoRA to Kontext",
    "LoRWeBBuildGrid": "Build Analogy Grid",
    "LoRWeBCropResult": "Crop Analogy Result",
    "LoRWeBSaveMixedLoRA": "Save Mixed LoRA",
    "LoRWeBBlendCoefficients": "Blend Analogies",
    "LoRWeBAdjustCoefficients": "Adjust Coefficients",
    "LoRWeBPreviewCoefficients": "Preview Coefficients",
    "LoRWeBSaveCoefficients": "Save Coefficients",
    "LoRWeBLoadCoefficients": "Load Coefficients",
    "LoRWeBEncodeAnalogies": "Encode Many Analogies",
    "LoRWeBEmptyPrompt": "Empty Prompt (No Text)",
}

for _id, _node in NODE_CLASS_MAPPINGS.items():
    guard(_node, NODE_DISPLAY_NAME_MAPPINGS[_id])
