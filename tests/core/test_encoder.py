"""Image encoders: golden embeddings, whole models, refusal of folders that do not fit."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from lorweb_core.encoder import family_of, load_image_encoder
from lorweb_core.errors import ModelError
from lorweb_core.preprocessing import CLIP_PREPROCESSING, Preprocessing, preprocess_images
from tests.images import GOLDEN, golden_tensor, noise, write_tiny_clip

QUERY = load_file(GOLDEN / "query.safetensors")
TINY = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
VISION = {**TINY, "image_size": 32, "patch_size": 8}
TEXT = {**TINY, "vocab_size": 50, "max_position_embeddings": 8}
#: transformers 5 has one class per backend and takes the torchvision one under the plain name.
CLIP_PROCESSOR = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory):
    """The golden vision tower as a folder."""
    return write_tiny_clip(tmp_path_factory.mktemp("models") / "tiny_clip")


@pytest.fixture(scope="module")
def whole_clip(tmp_path_factory):
    """A CLIP with both towers, as published: the projection's width stands outside `vision_config`."""
    folder = tmp_path_factory.mktemp("models") / "whole_clip"
    torch.manual_seed(0)
    config = transformers.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=12)
    transformers.CLIPModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def whole_siglip(tmp_path_factory):
    """A SigLIP with both towers, the layout of google/siglip2-base-patch16-224."""
    folder = tmp_path_factory.mktemp("models") / "whole_siglip"
    torch.manual_seed(0)
    transformers.SiglipModel(transformers.SiglipConfig(text_config=TEXT, vision_config=VISION)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", ["a", "ap", "b", "grid"])
@pytest.mark.parametrize("index", range(3))
def test_embeddings_equal_the_golden_ones(tiny_clip, index, name):
    embedding = load_image_encoder(tiny_clip).embed(golden_tensor(f"images/q{index}_{name}.png"))
    expected = QUERY[f"q{index}.embed.{name}"]
    # 1e-6 of the largest value; the golden float32 numbers are themselves 1.3e-6 off from a float64 run
    assert (embedding - expected).abs().max() <= 1e-6 * expected.abs().max()


def test_several_images_are_embedded_as_one_batch_without_influence_on_each_other(tiny_clip):
    encoder = load_image_encoder(tiny_clip)
    images = noise(48, 60, batch=35)  # more than one internal batch
    together = encoder.embed(images)
    assert together.shape == (35, 12) and together.dtype == torch.float32
    for index in (0, 17, 34):
        assert (encoder.embed(images[index : index + 1]) - together[index]).abs().max() < 5e-6


def test_a_folder_describes_its_encoder(tiny_clip):
    encoder = load_image_encoder(str(tiny_clip))
    assert encoder.encoder_id == "tiny_clip"
    assert encoder.embedding_dim == 12
    assert encoder.preprocessing == Preprocessing(32, 32, 3, CLIP_PREPROCESSING.mean, CLIP_PREPROCESSING.std)
    assert not encoder.model.training and not any(weight.requires_grad for weight in encoder.model.parameters())


def test_bfloat16_weights_give_float32_embeddings_close_by(tiny_clip):
    image = golden_tensor("images/q0_a.png")
    embedding = load_image_encoder(tiny_clip, dtype=torch.bfloat16).embed(image)
    assert embedding.dtype == torch.float32
    assert torch.cosine_similarity(embedding, load_image_encoder(tiny_clip).embed(image)).item() > 0.99


def test_a_whole_clip_is_read_without_its_text_tower(whole_clip):
    encoder = load_image_encoder(whole_clip)
    whole = transformers.CLIPModel.from_pretrained(whole_clip).eval()
    pixel_values = preprocess_images(noise(50, 40), encoder.preprocessing)
    with torch.no_grad():
        expected = whole.visual_projection(whole.vision_model(pixel_values=pixel_values).pooler_output)
    assert encoder.embedding_dim == 12
    assert torch.allclose(encoder.embed(noise(50, 40)), expected, atol=1e-6)
    assert not any("text" in name for name, _ in encoder.model.named_parameters())


def test_a_family_is_known_by_its_name_and_by_what_it_gives(whole_siglip, whole_clip):
    assert load_image_encoder(whole_siglip).family == family_of("google/SigLIP2-base-patch16-224") == "SigLIP"
    assert load_image_encoder(whole_clip).family == family_of("openai/clip-vit-large-patch14") == "CLIP"


def test_embedding_many_images_reports_progress_and_can_be_stopped(tiny_clip):
    encoder, seen = load_image_encoder(tiny_clip), []
    images = noise(32, 32, batch=70)
    encoder.embed(images, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(32, 70), (64, 70), (70, 70)]

    def stop(done, _):
        seen.append(done)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encoder.embed(images, on_progress=stop)
    assert seen[3:] == [32]


def test_a_fixed_size_siglip_gives_its_pooled_output_from_its_own_weights(whole_siglip):
    encoder = load_image_encoder(whole_siglip)
    whole = transformers.SiglipModel.from_pretrained(whole_siglip).eval()
    pixel_values = preprocess_images(noise(50, 40), encoder.preprocessing)
    with torch.no_grad():
        expected = whole.vision_model(pixel_values=pixel_values).pooler_output
    assert encoder.embedding_dim == 16
    assert encoder.preprocessing == Preprocessing(32, None, 2, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert torch.allclose(encoder.embed(noise(50, 40)), expected, atol=1e-6)
    again = load_image_encoder(whole_siglip)  # the reference's loading starts from other random weights each time
    assert torch.allclose(again.embed(noise(50, 40)), expected, atol=1e-6)


def test_a_vision_tower_saved_by_the_installed_transformers_loads(whole_siglip, whole_clip, tmp_path):
    for source in (whole_siglip, whole_clip):
        original = load_image_encoder(source)
        original.model.save_pretrained(tmp_path / source.name)
        again = load_image_encoder(tmp_path / source.name)
        assert torch.allclose(again.embed(noise(40, 40)), original.embed(noise(40, 40)), atol=1e-6)


def write(name, text):
    return lambda folder: (folder / name).write_text(text)


def change_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def drop_weights(folder, *fragments):
    weights = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not any(part in name for part in fragments)}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})


def cut_file(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def change(**values):
    return lambda folder: change_config(folder, **values)


def drop(*fragments):
    return lambda folder: drop_weights(folder, *fragments)


ODD_PREPROCESSING = json.dumps({"image_mean": [0, 0, 0], "image_std": [1, 1, 1], "do_normalize": False})
BAD_FOLDERS = {
    "no projection": (drop("visual_projection"), "lacks 1 weights .*: visual_projection.weight"),
    "a missing layer": (drop("layers.1.mlp"), "lacks 4 weights .*vision_model.encoder.layers.1.mlp"),
    "no tensors": (drop(""), "lacks"),
    "wrong width": (change(projection_dim=13), r"describe one vision tower \(RuntimeError"),
    "wrong type": (change(model_type="dinov2"), "is 'dinov2' in .*siglip_vision_model. Use the folder"),
    "naflex": (change(model_type="siglip2"), "is 'siglip2'.*NaFlex checkpoints are not supported"),
    "no type": (write("config.json", "{}"), "model_type is None"),
    "nonsense width": (change(hidden_size="wide"), r"describe one vision tower \(.*Error"),
    "zero width": (change(hidden_size=0), r"describe one vision tower \(.*Error"),
    "unknown activation": (change(hidden_act="none"), r"describe one vision tower \(KeyError"),
    "no config": (lambda f: (f / "config.json").unlink(), "There is no file .*config.json.*Copy the model folder"),
    "broken config": (write("config.json", "{,"), "config.json is not usable JSON"),
    "config is a list": (write("config.json", "[]"), r"config.json holds \[\], not a JSON object"),
    "pickle only": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        "model.safetensors, are missing in .* only config.json, .*pytorch_model.bin.*never read",
    ),
    "truncated": (cut_file, "not a whole safetensors file .*truncated"),
    "not safetensors": (write("model.safetensors", "PK\3\4 pickled"), "whole safetensors file"),
    "other size": (write("preprocessor_config.json", CLIP_PROCESSOR().to_json_string()), "takes 32 px, but .* 224 px"),
    "unusual preprocessing": (
        write("preprocessor_config.json", ODD_PREPROCESSING),
        "divide by 255 and normalize three channels: .*do_normalize",
    ),
}


@pytest.mark.parametrize(("break_folder", "message"), BAD_FOLDERS.values(), ids=BAD_FOLDERS)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_folder_that_would_give_wrong_or_random_embeddings_is_refused(break_folder, message, tmp_path):
    folder = write_tiny_clip(tmp_path / "clip")
    break_folder(folder)
    with pytest.raises(ModelError, match=message):
        load_image_encoder(folder)


def test_a_siglip_without_its_pooling_head_is_refused(whole_siglip, tmp_path):
    config = json.loads((whole_siglip / "config.json").read_text())
    switched_off = change(vision_config={**config["vision_config"], "vision_use_head": False})
    for name, break_folder, message in (
        ("headless", drop("vision_model.head"), r"weights of SiglipVisionModel.*: .*head.*siglip2-base"),
        ("switched_off", switched_off, r"head, which config.json switches off"),
    ):
        break_folder(shutil.copytree(whole_siglip, tmp_path / name))
        with pytest.raises(ModelError, match=message):
            load_image_encoder(tmp_path / name)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the process' memory map")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_file_may_be_replaced_while_the_encoder_is_in_use(tmp_path, dtype):
    folder = write_tiny_clip(tmp_path / "tiny_clip")
    encoder = load_image_encoder(folder, dtype=dtype)
    before = encoder.embed(noise(50, 40))
    assert str(folder) not in Path("/proc/self/maps").read_text(), "a cut file would end the process"
    (folder / "model.safetensors").write_bytes(b"")
    assert torch.equal(encoder.embed(noise(50, 40)), before)


def test_code_in_a_folder_is_never_run(tmp_path):
    folder = write_tiny_clip(tmp_path / "clip")
    (folder / "modeling_evil.py").write_text("raise SystemExit('this ran')")
    auto_map = {"AutoModel": "modeling_evil.Evil", "AutoConfig": "modeling_evil.Evil"}
    change_config(folder, auto_map=auto_map)
    assert load_image_encoder(folder).embedding_dim == 12
    change_config(folder, auto_map=auto_map, model_type="evil")
    with pytest.raises(ModelError, match="is 'evil'"):
        load_image_encoder(folder)


def test_a_missing_folder_is_refused_before_any_network(tiny_clip):
    for name in ("/no/such/folder", "./missing", "a/b/c", "clip", "https://example.org/x"):
        message = f"There is no folder at .*{name[-4:]}.*Name the folder of an image encoder"
        with pytest.raises(ModelError, match=message):
            load_image_encoder(name)
    with pytest.raises(ModelError, match=r"There is no file config\.json"):
        load_image_encoder("")  # the current folder, which holds no model
    with pytest.raises(ModelError, match=r"a file, not a folder, at .*model.safetensors. .*openai/clip"):
        load_image_encoder(tiny_clip / "model.safetensors")


def test_a_repository_that_is_not_in_the_cache_is_refused_offline(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"no-such/repository is not a folder here.*LocalEntryNotFound.*gated"):
        load_image_encoder("no-such/repository", local_files_only=True)


def test_embeddings_that_are_not_finite_are_refused(tmp_path):
    folder = write_tiny_clip(tmp_path / "clip")
    weights = load_file(folder / "model.safetensors")
    weights["visual_projection.weight"][3, 3] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="image encoder clip gives NaN or infinite embeddings"):
        load_image_encoder(folder).embed(noise(32, 32))
