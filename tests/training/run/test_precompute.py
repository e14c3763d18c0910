"""Caches of prompts and image embeddings: the same run with and without, whatever happens to them."""

import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from lorweb_core.encoder import load_image_encoder
from training.base import text as captions
from training.base.source import find_source
from training.data.images import load_pair
from training.data.index import read_pairs, write_pairs
from training.run.checkpoints import list_checkpoints
from training.run.distributed import Processes
from training.run.optimizers import set_learning_rate
from training.run.precompute import cached_captions, cached_embeddings
from training.train import train


def _shards(folder, kind):
    return sorted((folder / kind).glob("*/shard-*.safetensors"))


def test_cached_image_embeddings_give_the_same_run(tiny_config, tmp_path):
    plain = train(tiny_config("run.steps=3", "run.name=plain"))
    options = ("run.steps=3", f"data.cache={tmp_path / 'cache'}")
    cached = train(tiny_config(*options, "run.name=cached"))
    assert cached.losses == pytest.approx(plain.losses, abs=1e-5)
    assert _shards(tmp_path / "cache", "image")
    again = train(tiny_config(*options, "run.name=again"))
    assert again.losses == cached.losses


def test_corrupt_shard_is_found_and_made_again(tiny_config, tmp_path):
    options = ("run.steps=2", f"data.cache={tmp_path / 'cache'}")
    before = train(tiny_config(*options, "run.name=before"))
    shard = _shards(tmp_path / "cache", "image")[0]
    with shard.open("r+b") as file:
        file.truncate(shard.stat().st_size - 50)
    after = train(tiny_config(*options, "run.name=after"))
    assert after.losses == before.losses
    assert list(shard.parent.glob("*.bad"))


def test_prompts_on_disk_give_the_same_run(tiny_config, tiny_parts, tmp_path):
    options = ("run.steps=2", f"base.model={tiny_parts / 'model-with-text'}", "text.caption_source=a")
    plain = train(tiny_config(*options, "run.name=plain"))
    for name in ("first", "second"):
        cached = train(tiny_config(*options, f"data.cache={tmp_path / 'cache'}", f"run.name={name}"))
        assert cached.losses == pytest.approx(plain.losses, abs=1e-5)
    assert len(_shards(tmp_path / "cache", "text")) == 1


def test_text_encoders_are_loaded_once_for_any_number_of_prompts_and_not_for_known_ones(
    tiny_config, tiny_parts, tmp_path, monkeypatch
):
    loads = []
    load = captions._load_encoder
    monkeypatch.setattr(captions, "_load_encoder", lambda *arguments: loads.append(1) or load(*arguments))
    config = tiny_config(f"base.model={tiny_parts / 'model-with-text'}", f"data.cache={tmp_path / 'cache'}")
    source = find_source(config.base.model, None)
    prompts = [f"prompt {number}" for number in range(300)]
    look_up = cached_captions(config, source, prompts, Processes("cpu"))
    assert look_up("prompt 299")[0].shape == (24, 32)
    assert len(loads) == 2  # CLIP and T5
    cached_captions(config, source, prompts, Processes("cpu"))
    assert len(loads) == 2  # CLIP and T5


@pytest.fixture
def own_records(tiny_parts, tmp_path):
    """The pairs of tiny_parts with files that a test may change."""
    shutil.copytree(tiny_parts / "images", tmp_path / "images")
    records = read_pairs(tiny_parts / "pairs.jsonl")
    return [
        replace(
            record,
            before=tmp_path / record.before.relative_to(tiny_parts),
            after=tmp_path / record.after.relative_to(tiny_parts),
        )
        for record in records
    ]


def _replace_in_place(path):
    """Another image of the same size in pixels; the index still has the hash of the one that was."""
    Image.new("RGB", Image.open(path).size, (255, 0, 0)).save(path)


def test_an_image_that_was_replaced_in_place_is_embedded_again(tiny_config, own_records, tmp_path):
    config = tiny_config(f"data.cache={tmp_path / 'cache'}", "data.workers=0")
    encoder = load_image_encoder(config.encoder.model)
    cached_embeddings(config, encoder, own_records, Processes("cpu"))
    changed = own_records[0]
    _replace_in_place(changed.after)
    look_up = cached_embeddings(config, encoder, own_records, Processes("cpu"))
    red = torch.from_numpy(np.array(load_pair(changed)[1]))[None] / 255
    torch.testing.assert_close(look_up(changed.after_key), encoder.embed(red)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["text_encoder/model.safetensors", "tokenizer_2/*", "encoder"])
def test_a_model_file_that_was_replaced_under_its_name_starts_another_cache(
    tiny_config, tiny_parts, tmp_path, own_records, name
):
    model, encoder_folder = tmp_path / "model", tmp_path / "encoder"
    shutil.copytree(tiny_parts / "model-with-text", model)
    shutil.copytree(tiny_parts / "encoder", encoder_folder)
    config = tiny_config(
        f"base.model={model}", f"encoder.model={encoder_folder}", f"data.cache={tmp_path / 'cache'}", "data.workers=0"
    )
    source = find_source(config.base.model, None)

    def fill():
        if name == "encoder":
            cached_embeddings(config, load_image_encoder(encoder_folder), own_records[:1], Processes("cpu"))
        else:
            cached_captions(config, source, ["a prompt"], Processes("cpu"))
        return len(list((tmp_path / "cache").glob("*/*/fingerprint.json")))

    assert (fill(), fill()) == (1, 1)
    file = encoder_folder / "model.safetensors" if name == "encoder" else next(model.glob(name))
    status = file.stat()
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))  # within the same second
    assert fill() == 2


def test_broken_image_in_mid_run_is_replaced_by_another_draw(tiny_config, own_records, tmp_path, assembled):
    write_pairs(tmp_path / "pairs.jsonl", own_records)
    loop, state = assembled(tiny_config("run.steps=6", f"data.index={tmp_path / 'pairs.jsonl'}"))
    broken = next(record for record in own_records if record.split == "train")
    broken.after.write_bytes(b"not a image any more")
    loop.run(state)
    assert (state.step, state.bad_steps) == (6, 0)


def test_an_image_replaced_during_a_run_costs_no_step(tiny_config, tiny_parts, tmp_path, monkeypatch):
    shutil.copytree(tiny_parts / "images", tmp_path / "images")
    shutil.copy(tiny_parts / "pairs.jsonl", tmp_path)

    def replace_images(optimizer, schedule, step, steps):
        for image in (tmp_path / "images").rglob("*.png") if step == 1 else ():
            os.utime(image)
        return set_learning_rate(optimizer, schedule, step, steps)

    monkeypatch.setattr("training.run.loop.set_learning_rate", replace_images)
    options = (f"data.index={tmp_path / 'pairs.jsonl'}", f"data.cache={tmp_path / 'cache'}", "run.steps=50")
    with pytest.raises(ValueError, match="replaced during the run"):
        train(tiny_config(*options, "data.workers=0"))
    (saved,) = list_checkpoints(tiny_config().run_folder / "checkpoints")
    assert saved.name == "step-000000002"
