"""The cache: what is put is got, across processes, kills, cut files and flipped bits."""

import os
import random
import resource
import signal
import time
from multiprocessing import get_context

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorweb_core.errors import OutputError
from tests.training.data.pair_images import truncate
from training.data.tensor_cache import TensorCache, text_key

FINGERPRINT = {"kind": "text", "model": "someone/model", "max_tokens": 512}


def tensor_of(number):
    return torch.full((2, 3), float(number))


def filled(folder, first=0, count=10):
    """A written cache of `count` tensors, four a shard."""
    cache = TensorCache(folder, FINGERPRINT, shard_entries=4)
    for number in range(first, first + count):
        cache.put(f"key{number}", tensor_of(number))
    cache.flush()
    return cache


def holds(cache, numbers):
    """Whether each of these keys has the tensor that was put."""
    return all(torch.equal(cache.get(f"key{number}"), tensor_of(number)) for number in numbers)


def shards(cache):
    return sorted(cache.folder.glob("shard-*.safetensors"))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.uint8, torch.int64, torch.bool]),
    shape=st.lists(st.integers(0, 4), max_size=4),
    key=st.text(st.characters(codec="utf-8"), min_size=1, max_size=30).filter(lambda key: key != "__metadata__"),
)
def test_any_tensor_comes_back_bit_for_bit(tmp_path_factory, dtype, shape, key):
    folder, tensor = tmp_path_factory.mktemp("cache"), torch.randint(0, 255, shape).to(dtype)
    cache = TensorCache(folder, FINGERPRINT)
    cache.put(key, tensor)
    pending = cache.get(key)
    cache.flush()
    for held in (pending, cache.get(key), TensorCache(folder, FINGERPRINT).get(key)):
        assert held.dtype == dtype
        assert torch.equal(held, tensor)


def test_full_shards_are_written_by_themselves_and_the_rest_by_flush(tmp_path):
    cache = TensorCache(tmp_path, FINGERPRINT, shard_entries=4)
    for number in range(10):
        cache.put(f"key{number}", tensor_of(number))
    assert (len(shards(cache)), len(cache)) == (2, 10)
    cache.flush()
    assert len(shards(cache)) == 3
    reopened = TensorCache(tmp_path, FINGERPRINT)
    assert reopened.keys() == {f"key{number}" for number in range(10)}
    assert holds(reopened, range(10))
    assert reopened.get("unknown") is None
    assert reopened.missing(["key3", "new", "key4", "new"]) == ["new"]


def test_a_put_tensor_is_a_copy_also_of_a_view(tmp_path):
    base = torch.arange(24.0).reshape(4, 6)
    cache, expected = TensorCache(tmp_path, FINGERPRINT), base.T[1:, ::2].clone()
    cache.put("x", base.T[1:, ::2])
    base += 1
    assert torch.equal(cache.get("x"), expected)
    cache.flush()
    assert torch.equal(TensorCache(tmp_path, FINGERPRINT).get("x"), expected)


def test_another_fingerprint_is_another_cache(tmp_path):
    filled(tmp_path)
    other = TensorCache(tmp_path, {**FINGERPRINT, "max_tokens": 128})
    assert len(other) == 0
    same = TensorCache(tmp_path, dict(reversed(FINGERPRINT.items())))
    assert len(same) == 10
    assert "someone/model" in (same.folder / "fingerprint.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.4, 0.99])
def test_a_cut_shard_is_set_aside_and_exactly_its_tensors_are_missing(tmp_path, keep):
    cache = filled(tmp_path)
    truncate(shards(cache)[1], keep=keep)
    reopened = TensorCache(tmp_path, FINGERPRINT)
    lost = reopened.missing(f"key{number}" for number in range(10))
    assert len(lost) in (2, 4)
    assert len(list(cache.folder.glob("*.bad"))) == 1
    for key in lost:
        reopened.put(key, tensor_of(int(key[3:])))
    reopened.flush()
    assert holds(TensorCache(tmp_path, FINGERPRINT), range(10))


def flip_byte_of(cache, number):
    content = tensor_of(number).numpy().tobytes()
    (shard,) = (path for path in shards(cache) if content in path.read_bytes())
    data = bytearray(shard.read_bytes())
    data[data.index(content) + 5] ^= 0x40
    shard.write_bytes(data)
    return shard


def test_a_flipped_bit_is_found_on_reading_and_its_shard_is_made_again(tmp_path):
    victim = flip_byte_of(filled(tmp_path), 5)
    reopened = TensorCache(tmp_path, FINGERPRINT)
    assert len(reopened) == 10  # headers alone do not show it
    assert reopened.get("key5") is None
    assert not victim.exists()
    for held in (reopened, TensorCache(tmp_path, FINGERPRINT)):
        assert held.missing(f"key{n}" for n in range(10)) == ["key4", "key5", "key6", "key7"]
        assert holds(held, (0, 1, 2, 3, 8, 9))


def test_damage_to_any_single_byte_gives_the_right_tensor_or_none(tmp_path):
    cache = filled(tmp_path, count=3)
    (victim,) = shards(cache)
    intact, rng = victim.read_bytes(), random.Random(0)
    for position in range(len(intact)):
        for leftover in cache.folder.glob("shard-*"):
            leftover.unlink()
        data = bytearray(intact)
        data[position] ^= 1 << rng.randrange(8)
        victim.write_bytes(data)
        reopened = TensorCache(tmp_path, FINGERPRINT)
        found = [reopened.get(f"key{number}") for number in range(3)]
        assert all(held is None or torch.equal(held, tensor_of(number)) for number, held in enumerate(found))
        assert None in found or position >= 8  # at most a blank of the header's padding may go unnoticed


def test_a_shard_that_another_process_made_again_is_looked_up_again(tmp_path):
    reader, writer = filled(tmp_path), TensorCache(tmp_path, FINGERPRINT)
    flip_byte_of(writer, 5)
    assert writer.get("key5") is None  # the shard is gone
    assert reader.get("key6") is None
    filled(tmp_path, 4, 4)
    reader.refresh()
    assert holds(reader, [5])


def test_a_folder_that_cannot_be_written_is_an_error_and_a_failed_write_keeps_everything_pending(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cache folder"):
        TensorCache(tmp_path / "file", FINGERPRINT)
    cache = TensorCache(tmp_path, FINGERPRINT)
    cache.put("key1", tensor_of(1))
    moved = cache.folder.rename(tmp_path / "gone")
    with pytest.raises(OutputError):
        cache.flush()
    moved.rename(cache.folder)
    cache.flush()
    assert holds(TensorCache(tmp_path, FINGERPRINT), [1])


def start_filling(folder, first, count):
    writer = get_context("fork").Process(target=filled, args=(folder, first, count))
    writer.start()
    return writer


def test_two_processes_write_side_by_side(tmp_path):
    writers = [start_filling(tmp_path, first, 60) for first in (0, 40)]  # 20 keys are written by both
    for writer in writers:
        writer.join(120)
    assert [writer.exitcode for writer in writers] == [0, 0]
    cache = TensorCache(tmp_path, FINGERPRINT)
    assert len(cache) == 100
    assert holds(cache, range(100))


def test_a_killed_process_loses_at_most_what_was_pending(tmp_path):
    writer = start_filling(tmp_path, 0, 1_000_000)
    while len(list(tmp_path.rglob("shard-*"))) < 20 and writer.is_alive():
        time.sleep(0.01)
    writer.kill()
    writer.join(60)
    assert writer.exitcode == -signal.SIGKILL
    cache = TensorCache(tmp_path, FINGERPRINT)
    assert len(cache) >= 20 * 4
    assert len(cache) % 4 == 0
    assert cache.keys() == {f"key{number}" for number in range(len(cache))}
    assert not list(cache.folder.glob("*.bad"))


def fill_a_full_disk(folder):
    """Exit code 0 when a write beyond 4 KB is an error and leaves nothing; the limit stands for a full disk."""
    cache = TensorCache(folder, FINGERPRINT)
    cache.put("large", torch.zeros(5000))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    try:
        cache.flush()
    except OutputError:
        left = [path.name for path in cache.folder.iterdir()]
        os._exit(0 if left == ["fingerprint.json"] and cache.get("large") is not None else 1)
    os._exit(2)


def test_a_full_disk_is_reported_and_leaves_no_partial_shard(tmp_path):
    process = get_context("fork").Process(target=fill_a_full_disk, args=(tmp_path,))
    process.start()
    process.join(60)
    assert process.exitcode == 0


def test_text_keys_are_short_and_differ():
    assert text_key("a" * 10_000) != text_key("a" * 10_001)
    assert len(text_key("é")) == len(text_key("")) == 32
