"""Preprocessing: bit for bit Hugging Face's at every size, and every way in which its files state it."""

import json

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from lorweb_core.errors import ModelError
from lorweb_core.images import to_8bit
from lorweb_core.preprocessing import (
    CLIP_PREPROCESSING,
    SIGLIP2_PREPROCESSING,
    Preprocessing,
    fit_images,
    preprocess_images,
    read_preprocessing,
)
from tests.images import GOLDEN, golden_tensor, noise

QUERY = load_file(GOLDEN / "query.safetensors")
PREPROCESSED = json.loads((GOLDEN / "query.json").read_text())["preprocess224"]
#: transformers 5 has one class per backend and takes the torchvision one under the plain name.
CLIP_PROCESSOR = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
SIGLIP_PROCESSOR = getattr(transformers, "SiglipImageProcessorPil", None) or transformers.SiglipImageProcessor

sizes = st.tuples(st.integers(2, 700), st.integers(2, 700)).filter(lambda size: max(size) <= 100 * min(size))


def processed(processor, images):
    """What Hugging Face makes of images [B, H, W, 3] on the 8-bit grid."""
    pil_images = [Image.fromarray(to_8bit(image)) for image in images]
    return torch.from_numpy(np.stack(processor(pil_images, return_tensors="np")["pixel_values"]))


@pytest.mark.parametrize("index", range(3))
def test_clip_preprocessing_equals_the_golden_pixels_exactly(index):
    pixel_values = preprocess_images(golden_tensor(PREPROCESSED[index]["image"]), CLIP_PREPROCESSING)
    assert torch.equal(pixel_values[..., ::16, ::16], QUERY[f"preprocess224.{index}.every16th"])
    assert pixel_values.mean().item() == pytest.approx(PREPROCESSED[index]["mean"], abs=1e-6)
    assert pixel_values.std().item() == pytest.approx(PREPROCESSED[index]["std"], abs=1e-6)


#: Short edge and crop: CLIP's own, and any others.
edges = st.just((224, 224)) | st.tuples(st.integers(8, 60), st.integers(4, 60))


@given(size=sizes, edges=edges, resample=st.sampled_from([2, 3]))
@settings(max_examples=120, deadline=None)
def test_clip_preprocessing_equals_hugging_faces_at_every_size_edge_and_crop(size, edges, resample):
    edge, crop = edges[0], min(edges)
    ours = Preprocessing(crop, edge, resample, CLIP_PREPROCESSING.mean, CLIP_PREPROCESSING.std)
    theirs = CLIP_PROCESSOR(size={"shortest_edge": edge}, crop_size={"height": crop, "width": crop}, resample=resample)
    images = noise(*size, batch=2)
    assert torch.equal(preprocess_images(images, ours), processed(theirs, images))


@given(size=sizes, resample=st.sampled_from([2, 3]))
@settings(max_examples=40, deadline=None)
def test_siglip_preprocessing_equals_hugging_faces_at_every_size(size, resample):
    ours = Preprocessing(224, None, resample, SIGLIP2_PREPROCESSING.mean, SIGLIP2_PREPROCESSING.std)
    images = noise(*size)
    assert torch.equal(preprocess_images(images, ours), processed(SIGLIP_PROCESSOR(resample=resample), images))


@given(size=sizes, is_clip=st.booleans())
@settings(max_examples=30, deadline=None)
def test_fitted_images_are_8_bit_squares_that_fitting_again_leaves_alone(size, is_clip):
    preprocessing = CLIP_PREPROCESSING if is_clip else SIGLIP2_PREPROCESSING
    images = noise(*size, batch=2)
    fitted = fit_images(images, preprocessing)
    assert fitted.shape == (2, 224, 224, 3)
    assert torch.equal((fitted * 255).round() / 255, fitted)
    assert torch.equal(fit_images(fitted, preprocessing), fitted)
    assert torch.equal(preprocess_images(fitted, preprocessing), preprocess_images(images, preprocessing))


def test_the_hosts_arithmetic_on_fitted_images_gives_hugging_faces_pixels():
    images = golden_tensor("images/pp0.png")
    fitted = fit_images(images, CLIP_PREPROCESSING).movedim(-1, 1)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_PREPROCESSING.mean, CLIP_PREPROCESSING.std))
    normalized = ((255 * fitted).clip(0, 255).round() / 255 - mean) / std  # what a CLIP_VISION does at 224×224
    assert (normalized - preprocess_images(images, CLIP_PREPROCESSING)).abs().max() <= 2.4e-7


@pytest.mark.parametrize(
    "values, expected",
    [
        ({"size": 224, "crop_size": 224}, (224, 224)),  # as OpenAI's CLIP was published
        ({"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}, (224, 256)),
        ({"size": {"height": 224, "width": 224}, "do_center_crop": False}, (224, None)),
        ({"size": {"height": 224, "width": 224}, "crop_size": {"height": 224, "width": 224}}, (224, None)),
        ({"size": None, "crop_size": None, "resample": None}, (224, 224)),
    ],
)
def test_every_spelling_of_sizes_is_understood(values, expected, tmp_path):
    values = {"image_mean": CLIP_PREPROCESSING.mean, "image_std": CLIP_PREPROCESSING.std, **values}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    assert read_preprocessing(tmp_path, CLIP_PREPROCESSING) == Preprocessing(
        *expected, 3, CLIP_PREPROCESSING.mean, CLIP_PREPROCESSING.std
    )


@pytest.mark.parametrize("processor_class", [CLIP_PROCESSOR, SIGLIP_PROCESSOR])
def test_a_preprocessor_saved_by_the_installed_transformers_is_understood(processor_class, tmp_path):
    processor = processor_class()
    processor.save_pretrained(tmp_path)
    preset = CLIP_PREPROCESSING if processor_class is CLIP_PROCESSOR else SIGLIP2_PREPROCESSING
    preprocessing = read_preprocessing(tmp_path, preset)
    assert preprocessing.resample == 3
    assert torch.equal(preprocess_images(noise(70, 50), preprocessing), processed(processor, noise(70, 50)))


def test_a_processor_file_of_newer_transformers_is_understood(tmp_path):
    values = json.loads(CLIP_PROCESSOR(size={"shortest_edge": 300}).to_json_string())
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": values}))
    assert read_preprocessing(tmp_path, CLIP_PREPROCESSING).shortest_edge_px == 300


@pytest.mark.parametrize(
    "values",
    [
        {"size": {"shortest_edge": 200}, "crop_size": 224},
        {"size": {"height": 224, "width": 112}, "do_center_crop": False},
        {"size": {"shortest_edge": 224}, "do_center_crop": False},
        {"size": {"longest_edge": 224}},
        {"rescale_factor": 1},
        {"do_resize": False},
        {"image_std": [0, 1, 1]},
        {"image_mean": [0.5]},
        {"resample": 77},
        {"crop_size": 0},
        {"size": float("inf")},
        {"resample": float("inf")},
    ],
)
def test_preprocessing_that_we_would_do_differently_is_refused(values, tmp_path):
    values = {"image_mean": CLIP_PREPROCESSING.mean, "image_std": CLIP_PREPROCESSING.std, **values}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    with pytest.raises(ModelError, match=r"does more than resize, .* Use the folder of"):
        read_preprocessing(tmp_path, CLIP_PREPROCESSING)
